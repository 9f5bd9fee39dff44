"""Folders of images: list them, and tell images from masks and hidden files."""

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
        fault = "is a file, not a folder" if root.exists() else "does not exist"
        raise UserError(f"data.root: {root} {fault} (working directory: {Path.cwd()})\ngive a folder: data.root=DIR")


def subfolders(folder: Path) -> list[Path]:
    """Return the sub-folders, sorted, without hidden ones and folders of masks."""
    names = {f.name for f in folder.iterdir() if f.is_dir() and not f.name.startswith(".")}
    return [folder / name for name in sorted(names) if not _holds_masks(name, names)]


def _holds_masks(name: str, beside: Collection[str]) -> bool:
    """Return whether ``<name> GT`` is beside the folder of images ``<name>``, as in the fish archive."""
    return name.endswith(MASK_SUFFIX) and name.removesuffix(MASK_SUFFIX) in beside


def images_below(folder: Path) -> Iterator[Path]:
    """Yield the image files below ``folder``, by suffix in either case, without hidden files and masks."""
    for base, folders, files in os.walk(folder):
        folders[:] = sorted(f for f in folders if not f.startswith(".") and not _holds_masks(f, folders))
        for name in sorted(files):
            if not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES:
                yield Path(base, name)


def input_catalog(pattern: str, classes: Sequence[str]) -> Catalog:
    """Return the files to predict as a catalog without labels.

    Args:
        pattern: an image file, a folder (searched with its sub-folders), or a pattern with ``*``, ``?`` or ``**``.
        classes: the model's class names.

    Returns:
        A catalog whose paths are relative to the working directory, or absolute, as ``pattern`` is.

    Raises:
        UserError: it matches no image.
    """
    path = Path(pattern).expanduser()
    if path.is_dir():
        files = [str(file) for file in images_below(path)]
    elif path.is_file():
        files = [str(path)]
    else:
        files = sorted(name for name in glob.glob(str(path), recursive=True) if Path(name).is_file())
    if not files:
        fault = "contains no image" if path.exists() else "matches no file"
        raise UserError(
            f"input: {pattern} {fault} (working directory: {Path.cwd()})\ngive an image, a folder or 'quoted pattern*'"
        )
    n = len(files)
    blank = np.full(n, "", dtype=np.str_)
    return Catalog(Path(), np.array(files, dtype=np.str_), np.zeros(n, np.int64), blank, blank, tuple(classes))
