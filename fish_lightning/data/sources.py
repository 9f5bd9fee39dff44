"""Sources find files and labels on disk and hand back a catalog: the archive, class folders, a CSV, the sample set."""

import csv
import os
from collections import Counter
from pathlib import Path
from typing import Any, Protocol

from fish_lightning.data.archives.kaggle import download
from fish_lightning.data.catalog import SPLITS, Catalog, make_catalog
from fish_lightning.data.folders import images_below, require_folder, subfolders
from fish_lightning.data.sample.classes import ORIGINAL_FOLDERS
from fish_lightning.errors import UserError
from fish_lightning.files import read_rows

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
        **arguments: passed to :func:`fish_lightning.data.sample.generate.make_sample`.
    """

    def __init__(self, root: str | Path, **arguments: Any) -> None:
        self.root = Path(root).expanduser()
        self.arguments = arguments

    def prepare(self) -> None:
        """Draw the set if it is not there yet."""
        from fish_lightning.data.sample.generate import make_sample

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
