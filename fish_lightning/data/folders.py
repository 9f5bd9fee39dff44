"""Folders of images: what is in them, and what in them is no image."""

import glob
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np

from fish_lightning.data.catalog import Catalog
from fish_lightning.errors import UserError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})
MASK_SUFFIX = " GT"


def require_folder(root: Path) -> None:
    """Raise a :class:`UserError` unless ``root`` is a folder."""
    if not root.is_dir():
        kind = "is a file, not a folder" if root.exists() else "does not exist"
        raise UserError(f"data.root: {root} {kind} (seen from {Path.cwd()})\ngive the folder with data.root=DIR")


def subfolders(folder: Path) -> list[Path]:
    """Visible sub-folders, sorted, without folders of masks."""
    names = {f.name for f in folder.iterdir() if f.is_dir() and not f.name.startswith(".")}
    return [folder / name for name in sorted(names) if not _holds_masks(name, names)]


def _holds_masks(name: str, beside: Collection[str]) -> bool:
    """Whether ``<name> GT`` stands beside the folder of images ``<name>``, as in the fish archive."""
    return name.endswith(MASK_SUFFIX) and name.removesuffix(MASK_SUFFIX) in beside


def images_below(folder: Path) -> Iterator[Path]:
    """All image files below ``folder`` by suffix, in either case; hidden files and mask folders are left out."""
    for base, folders, files in os.walk(folder):
        folders[:] = sorted(f for f in folders if not f.startswith(".") and not _holds_masks(f, folders))
        for name in sorted(files):
            if not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES:
                yield Path(base, name)


def input_catalog(pattern: str, classes: Sequence[str]) -> Catalog:
    """The files to predict, as a table without labels.

    Args:
        pattern: an image file, a folder (searched with its sub-folders), or a pattern with ``*``, ``?`` or ``**``.
        classes: the model's class names.

    Returns:
        A catalog whose paths are as the user would write them, seen from the working folder.

    Raises:
        UserError: nothing there, or no image among it.
    """
    path = Path(pattern).expanduser()
    if path.is_dir():
        files = [str(file) for file in images_below(path)]
    elif path.is_file():
        files = [str(path)]
    else:
        files = sorted(name for name in glob.glob(str(path), recursive=True) if Path(name).is_file())
    if not files:
        where = "holds no image" if path.exists() else "matches no file"
        raise UserError(
            f"input: {pattern} {where} (seen from {Path.cwd()})\ngive an image, a folder, or 'a quoted pattern*'"
        )
    n = len(files)
    blank = np.full(n, "", dtype=np.str_)
    return Catalog(Path(), np.array(files, dtype=np.str_), np.zeros(n, np.int64), blank, blank, tuple(classes))
