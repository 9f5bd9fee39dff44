"""Sources find files and labels on disk and hand back a catalog: the archive, class folders, a CSV, the sample set."""

import csv
import glob
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fish_lightning.data.catalog import SPLITS, Catalog, make_catalog
from fish_lightning.data.download import download
from fish_lightning.data.kinds import ORIGINAL_FOLDERS
from fish_lightning.data.photographs import cache_file, find_photographs, photograph_names
from fish_lightning.errors import UserError
from fish_lightning.files import read_rows
from fish_lightning.hardware import cores

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})
MASK_SUFFIX = " GT"
NOT_CLASSES = ("Fish_Dataset", "NA_Fish_Dataset")  # the archive's own folders: all images, and the originals


class Source(Protocol):
    """Where a data set comes from."""

    def prepare(self) -> None:
        """Make or fetch what is missing; called by one process a node."""

    def read(self) -> Catalog:
        """The table of all images; its split column is filled only where the source itself says so."""


class ArchiveSource:
    """The archive of "A Large-Scale Fish Dataset" (Ulucan et al., ASYU 2020), as Kaggle ships it.

    Args:
        root: the download folder, ``Fish_Dataset`` or ``Fish_Dataset/Fish_Dataset``: whichever the user points at.
        kaggle: ``owner/name`` of the data set to download where ``root`` does not exist; None: nothing is downloaded.
    """

    def __init__(self, root: str | Path, kaggle: str | None = None) -> None:
        self.root, self.kaggle = Path(root).expanduser(), kaggle

    def prepare(self) -> None:
        """Download the archive if its folder is not there."""
        if self.kaggle is not None and not self.root.exists():
            download(self.kaggle, self.root)

    def read(self) -> Catalog:
        """Read ``<Class>/<Class>/*``; mask folders (``<Class> GT``) and ``NA_Fish_Dataset`` are left out.

        Raises:
            UserError: ``root`` is missing or holds no class folder in the archive's layout.
        """
        require_folder(self.root)
        for base in (self.root, self.root / "Fish_Dataset", self.root / "Fish_Dataset" / "Fish_Dataset"):
            folders = [f for f in subfolders(base) if f.name not in NOT_CLASSES] if base.is_dir() else []
            classes = [f for f in folders if (f / f.name).is_dir()]
            if classes:
                break
        else:
            raise UserError(
                f"{self.root} is not in the fish archive's layout (Fish_Dataset/Fish_Dataset/<Class>/<Class>/*.png)\n"
                "for plain class folders use data=folder."
            )
        rows = [
            (file.relative_to(self.root).as_posix(), folder.name, "", "")
            for folder in classes
            for file in images_below(folder / folder.name)
        ]
        return make_catalog(self.root, rows, [folder.name for folder in folders])


class OriginalsSource:
    """The archive's photographs before augmentation, ``NA_Fish_Dataset/<Class>/*``, by the names of its other folders.

    Args:
        root: the download folder, or ``NA_Fish_Dataset``.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).expanduser()

    def prepare(self) -> None:
        """Nothing to make."""

    def read(self) -> Catalog:
        """Read all photographs, whatever their file type; two of the classes are spelled differently there.

        Raises:
            UserError: ``root`` is missing or does not hold the originals.
        """
        require_folder(self.root)
        below = [self.root / name / NOT_CLASSES[1] for name in (".", NOT_CLASSES[0])]
        base = next((folder for folder in below if folder.is_dir()), self.root)
        folders = subfolders(base)
        if not folders or any(folder.name in NOT_CLASSES or (folder / folder.name).is_dir() for folder in folders):
            raise UserError(
                f"{self.root} does not hold the originals ({NOT_CLASSES[1]}/<Class>/*.jpg)\n"
                f"give the folder that {NOT_CLASSES[1]} is in: data.root=DIR"
            )
        spelled = {original: name for name, original in ORIGINAL_FOLDERS.items()}
        names = {folder: spelled.get(folder.name, folder.name) for folder in folders}
        rows = [
            (file.relative_to(self.root).as_posix(), name, "", "")
            for folder, name in names.items()
            for file in images_below(folder)
        ]
        return make_catalog(self.root, rows, list(names.values()))


class FolderSource:
    """Any folder of class folders: ``root/<class>/**``, or ``root/{train,val,test}/<class>/**`` with its split kept.

    Args:
        root: the folder that holds the class (or split) folders; None is an error that says how to give it.
    """

    def __init__(self, root: str | Path | None) -> None:
        if root is None:
            raise UserError("data.root: no folder of images is given\ngive it with data.root=DIR")
        self.root = Path(root).expanduser()

    def prepare(self) -> None:
        """Nothing to make."""

    def read(self) -> Catalog:
        """Read all images; the split column is filled where the folders are named train, val and test.

        Raises:
            UserError: ``root`` is missing, empty, or one of its class folders holds no image.
        """
        require_folder(self.root)
        top = subfolders(self.root)
        given = {folder.name for folder in top}
        if given & set(NOT_CLASSES):
            raise UserError(f"{self.root} is the fish archive's download: for its classes use data=fish")
        parts = given & {*SPLITS, "valid", "validation"}
        has_split = "train" in parts and (len(parts) > 1 or given == parts)
        if has_split and given != parts:
            raise UserError(
                f"{self.root} has folders named as splits ({', '.join(sorted(parts))}) and others beside them: "
                f"{', '.join(sorted(given - parts)[:5])}\nmove the others away, or point data.root at class folders."
            )
        rows, names = [], set()
        for part in top if has_split else [self.root]:
            split = ("val" if part.name.startswith("val") else part.name) if has_split else ""
            for folder in subfolders(part):
                names.add(folder.name)
                for file in images_below(folder):
                    rows.append((file.relative_to(self.root).as_posix(), folder.name, "", split))
        return make_catalog(self.root, rows, sorted(names))


class CatalogSource:
    """A table that names the images, ``data.catalog=FILE.csv``, whatever their folders say.

    A run's ``split.csv`` is one. Columns ``path`` and ``label``; optional ``photograph`` (one name: copies of one)
    and ``split`` (train, val or test, kept as a split of folders is). Other columns are not read.

    Args:
        root: folder that the paths are relative to; None: the folder of the table.
        catalog: the file, UTF-8 with a line of column names.
    """

    def __init__(self, root: str | Path | None, catalog: str | Path) -> None:
        self.file = Path(catalog).expanduser()
        self.root = self.file.parent if root is None else Path(root).expanduser()

    def prepare(self) -> None:
        """Nothing to make."""

    def read(self) -> Catalog:
        """The table as the file has it.

        Raises:
            UserError: no such file or folder, a column or a label is missing, an image is there twice or not at all, or
                a split has another name.
        """
        where = f"data.catalog: {self.file}"
        lines = read_rows(self.file, "data.catalog", ("path", "label"))
        require_folder(self.root)
        rows = [(line["path"], line["label"], line.get("photograph") or "", line.get("split") or "") for line in lines]
        blank = [number for number, row in enumerate(rows, 2) if not row[0] or not row[1]]
        if blank:
            raise UserError(f"{where} has {len(blank)} rows without a path or a label, the first is row {blank[0]}")
        unknown = sorted({row[3] for row in rows} - {*SPLITS, ""})
        if unknown:
            raise UserError(f"{where} names the split '{unknown[0]}'; allowed are {', '.join(SPLITS)}")
        twice = [path for path, count in Counter(os.path.normpath(row[0]) for row in rows).items() if count > 1]
        if twice:
            raise UserError(f"{where} names {len(twice)} images more than once, the first {twice[0]}")
        absent = [row[0] for row in rows if not (self.root / row[0]).is_file()]
        if absent:
            raise UserError(
                f"{where} names {len(absent)} of {len(rows)} images that are not there, the first {absent[0]}\n"
                f"paths are relative to {self.root}; for another folder: data.root=DIR"
            )
        return make_catalog(self.root, rows)


class SampleSource:
    """The generated sample data, made on first use; the truth of which copy came from which photograph is known.

    Args:
        root: cache folder the set is made in.
        **arguments: passed to :func:`fish_lightning.data.sample.make_sample`.
    """

    def __init__(self, root: str | Path, **arguments: Any) -> None:
        self.root = Path(root).expanduser()
        self.arguments = arguments

    def prepare(self) -> None:
        """Draw the set if it is not there yet."""
        from fish_lightning.data.sample import make_sample

        make_sample(self.root, **self.arguments)

    def read(self) -> Catalog:
        """Read the archive's layout, and the photographs from ``photographs.csv``."""
        catalog = ArchiveSource(self.root).read()
        with (self.root / "photographs.csv").open(newline="", encoding="utf-8") as stream:
            truth = {row["path"]: row["photograph"] for row in csv.DictReader(stream)}
        rows = [
            (str(path), catalog.classes[label], truth[str(path)], "")
            for path, label in zip(catalog.paths, catalog.labels, strict=True)
        ]
        return make_catalog(self.root, rows)


class RecordedSource:
    """The table that a checkpoint carries, so that an evaluation needs nothing but the images.

    Args:
        root: where the images are now; None: where they were.
        state: :meth:`Catalog.state` of the training run.
    """

    def __init__(self, root: str | Path | None, state: dict[str, Any]) -> None:
        self.state = state | ({"root": str(root)} if root is not None else {})

    def prepare(self) -> None:
        """Nothing to make."""

    def read(self) -> Catalog:
        """The table as it was trained on.

        Raises:
            UserError: the folder is gone or the first image is no longer in it.
        """
        catalog = Catalog.from_state(self.state)
        require_folder(catalog.root)
        if not (catalog.root / str(catalog.paths[0])).is_file():
            raise UserError(
                f"{catalog.root} does not hold the images this checkpoint was trained on "
                f"(no {catalog.paths[0]})\nsay where they are now: data.root=DIR"
            )
        return catalog


class OtherSource:
    """Another data set for a trained model: labels by the model's class names, splits by what it was trained on.

    ``train`` is what the model was trained on, or copies of that: by path where they are images of the training run,
    else by their look. Of the rest the data set's own split stands; where it has none, all is ``test``.

    Args:
        root: folder of the other data.
        source: reads it.
        state: :meth:`Catalog.state` of the training run.
        find_copies: look which images are copies of training images; False: compare paths alone.
        cache: folder to keep what was found in; None: keep nothing.

    Attributes:
        trained: (N,) after :meth:`read`: which images are copies of training images; None where that is not known.
        missing: how many training images are gone, and could not be compared.
    """

    def __init__(
        self,
        root: str | Path | None,
        source: Callable[[str | Path | None], Source],
        state: dict[str, Any],
        find_copies: bool = False,
        cache: str | Path | None = None,
    ) -> None:
        self.source = source(root)
        self.known = Catalog.from_state(state)
        self.find_copies, self.cache = find_copies, cache
        self.trained: npt.NDArray[np.bool_] | None = None
        self.missing = 0

    def prepare(self) -> None:
        """Make or fetch what is missing."""
        self.source.prepare()

    def read(self) -> Catalog:
        """The table with the model's classes.

        Raises:
            UserError: a class that the model does not know.
        """
        catalog = self.source.read()
        unknown = sorted(set(catalog.classes) - set(self.known.classes))
        if unknown:
            raise UserError(
                f"{catalog.root} has classes that the checkpoint does not know: {', '.join(unknown)}\n"
                f"it knows: {', '.join(self.known.classes)}"
            )
        number = np.array([self.known.classes.index(name) for name in catalog.classes])
        catalog = replace(catalog, labels=number[catalog.labels], classes=self.known.classes)
        # The originals lie below the folder that was trained on, but are other images.
        same = catalog.root.resolve() == self.known.root.resolve() and np.isin(catalog.paths, self.known.paths).all()
        return self._compared(catalog) if self.find_copies and not same else self._looked_up(catalog)

    def _looked_up(self, catalog: Catalog) -> Catalog:
        """Split and photograph by path, as the training run had them; others keep their own."""
        row = {path: i for i, path in enumerate(self.known.paths.tolist())}
        rows = np.array([row.get(path, -1) for path in catalog.paths.tolist()])
        own = np.where(catalog.splits == "train", "", catalog.splits)
        return replace(
            catalog,
            splits=np.where(rows >= 0, self.known.splits[rows], own),
            photographs=np.where(rows >= 0, self.known.photographs[rows], catalog.photographs),
        )

    def _compared(self, catalog: Catalog) -> Catalog:
        """Split and photograph by the look of the images, beside those that the model was trained on."""
        paths = self.known.paths[self.known.splits == "train"].tolist()
        there = [path for path in paths if (self.known.root / path).is_file()]
        self.missing = len(paths) - len(there)
        files = [catalog.root / path for path in catalog.paths.tolist()]
        cache = cache_file(self.cache, catalog.root, self.known.root)
        groups = find_photographs([*files, *(self.known.root / path for path in there)], cache, cores())
        moved = np.isin(catalog.paths, sorted(set(paths) - set(there)))  # gone from there, here under their old names
        self.missing -= int(moved.sum())
        if there or moved.any():
            self.trained = moved | np.isin(groups[: len(files)], groups[len(files) :])
        names = photograph_names([*catalog.paths.tolist(), *there], groups)[: len(files)]
        has_split = (catalog.splits != "").any()
        rest = np.where(catalog.splits == "train", "", catalog.splits) if has_split else "test"
        splits = rest if self.trained is None else np.where(self.trained, "train", rest)
        return replace(
            catalog,
            splits=np.broadcast_to(splits, len(files)).astype("<U5"),
            photographs=np.where(catalog.photographs == "", names, catalog.photographs),
        )


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
