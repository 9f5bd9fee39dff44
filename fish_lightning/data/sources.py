"""Sources read a data set into a catalog: the fish archive, class folders, a CSV table, the generated sample data."""

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from fish_lightning.data.catalog import SPLITS, Catalog, make_catalog
from fish_lightning.data.listing import RUN, Skipped, images_below, require_folder, same_file, say_skipped, subfolders
from fish_lightning.data.sample.classes import ORIGINAL_FOLDERS
from fish_lightning.data.sample.recipe import Recipe
from fish_lightning.errors import UserError, first_line
from fish_lightning.files import locked, node_lock, read_rows, shown

NOT_CLASSES = ("Fish_Dataset", "NA_Fish_Dataset")  # folders of the archive: augmented images, originals


class Source(Protocol):
    """A data set."""

    def prepare(self) -> None:
        """Download or generate missing files, if any; called by one process per node."""
        return

    def read(self) -> Catalog:
        """Return the catalog of all images; its splits are empty unless the data set defines them."""


class ArchiveSource:
    """The archive of "A Large-Scale Fish Dataset" (Ulucan et al., ASYU 2020), as Kaggle ships it.

    Args:
        root: the download folder, ``Fish_Dataset`` or ``Fish_Dataset/Fish_Dataset``.
        kaggle: ``owner/name`` of the Kaggle data set to download if ``root`` does not exist; None to never download.
    """

    def __init__(self, root: str | Path, kaggle: str | None = None) -> None:
        self.root, self.kaggle = Path(root).expanduser(), kaggle

    def prepare(self) -> None:
        """Download the archive if its folder does not exist."""
        if self.kaggle is None or self.root.exists():
            return
        with locked(node_lock(self.root), f"waiting for another program that is downloading {self.kaggle}"):
            if not self.root.exists():
                _download(self.kaggle, self.root)

    def read(self) -> Catalog:
        """Read ``<Class>/<Class>/*``, without mask folders (``<Class> GT``) and ``NA_Fish_Dataset``.

        Raises:
            UserError: ``root`` is missing or is not in the archive's layout.
        """
        require_folder(self.root)
        skipped: Skipped = {}
        for base in (self.root, self.root / "Fish_Dataset", self.root / "Fish_Dataset" / "Fish_Dataset"):
            folders = [f for f in subfolders(base, skipped) if f.name not in NOT_CLASSES] if base.is_dir() else []
            if any((folder / folder.name).is_dir() for folder in folders):
                break
        else:
            raise UserError(
                f"{self.root} is not in the fish archive's layout (Fish_Dataset/Fish_Dataset/<Class>/<Class>/*.png)\n"
                "for plain class folders use data=folder."
            )
        return _catalog(self.root, [(folder / folder.name, folder.name, "") for folder in folders], skipped)


def _download(handle: str, root: Path) -> None:
    """Download a data set into kagglehub's cache and link ``root`` to it, so that it is not stored twice."""
    manually = (
        f"or download the zip file in a browser (kaggle.com/datasets/{handle}) and run\n"
        "python -m fish_lightning.prepare data=fish data.archive=FILE.zip"
    )
    try:
        import kagglehub
    except ImportError:
        raise UserError(
            f"data.root: {root} does not exist (working directory: {Path.cwd()})\n"
            f"if the data is elsewhere: data.root=DIR; to download it: pip install kagglehub\n{manually}"
        ) from None
    print(f"data.root: {shown(root)} does not exist: downloading {handle} from Kaggle", flush=True)
    try:
        folder = Path(kagglehub.dataset_download(handle))
    except Exception as error:  # no network, no account, no space: whatever kagglehub and its HTTP library raise
        raise UserError(
            f"{handle} could not be downloaded: {first_line(error)}\n"
            "if Kaggle requires authentication: create a token at kaggle.com/settings, save it as\n"
            f"~/.kaggle/kaggle.json, {manually}"
        ) from None
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        root.unlink(missing_ok=True)  # a dangling link to a deleted download
        root.symlink_to(folder.resolve(), target_is_directory=True)
    except OSError as error:
        raise UserError(
            f"cannot create {root} as a link to the download: {error.strerror or error}\n"
            f"use the download directly: data.root={folder}"
        ) from None


def _catalog(root: Path, folders: list[tuple[Path, str, str]], skipped: Skipped) -> Catalog:
    """Return the catalog of the images in folders of a class and a split; print what was skipped.

    A folder without an image is an error, unless it contains output of this program: then it is not a class.
    """
    rows: list[tuple[str, str, str, str]] = []
    classes = set()
    for folder, label, split in folders:
        files = [file.relative_to(root).as_posix() for file in images_below(folder, skipped)]
        rows += [(file, label, "", split) for file in files]
        if files or not any(why == RUN and path.is_relative_to(folder) for path, why in skipped.items()):
            classes.add(label)
    say_skipped(skipped)
    return make_catalog(root, rows, sorted(classes))


class OriginalsSource(Source):
    """The archive's photographs before augmentation, ``NA_Fish_Dataset/<Class>/*``.

    Args:
        root: the download folder, or ``NA_Fish_Dataset``.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).expanduser()

    def read(self) -> Catalog:
        """Read all photographs; the two class names spelled differently there are mapped to the archive's.

        Raises:
            UserError: ``root`` is missing or does not contain the originals.
        """
        require_folder(self.root)
        below = [self.root / name / NOT_CLASSES[1] for name in (".", NOT_CLASSES[0])]
        base = next((folder for folder in below if folder.is_dir()), self.root)
        skipped: Skipped = {}
        folders = subfolders(base, skipped)
        if not folders or any(folder.name in NOT_CLASSES or (folder / folder.name).is_dir() for folder in folders):
            raise UserError(
                f"{self.root} does not contain the originals ({NOT_CLASSES[1]}/<Class>/*.jpg)\n"
                f"pass the folder that contains {NOT_CLASSES[1]}: data.root=DIR"
            )
        spelled = {original: name for name, original in ORIGINAL_FOLDERS.items()}
        named = [(folder, spelled.get(folder.name, folder.name), "") for folder in folders]
        return _catalog(self.root, named, skipped)


class FolderSource(Source):
    """Class folders: ``root/<class>/**``, or ``root/{train,val,test}/<class>/**``, which define the split.

    Args:
        root: the folder of class (or split) folders; None is an error.
    """

    def __init__(self, root: str | Path | None) -> None:
        if root is None:
            raise UserError("data.root: no folder of images was specified\npass it with data.root=DIR")
        self.root = Path(root).expanduser()

    def read(self) -> Catalog:
        """Read all images; split folders fill the split column.

        Raises:
            UserError: ``root`` is missing or empty, or a class folder contains no image.
        """
        require_folder(self.root)
        skipped: Skipped = {}
        top = subfolders(self.root, skipped)
        given = {folder.name for folder in top}
        if given & set(NOT_CLASSES):
            raise UserError(f"{self.root} is the fish archive: for its classes use data=fish")
        parts = given & {*SPLITS, "valid", "validation"}
        has_split = "train" in parts and (len(parts) > 1 or given == parts)
        if has_split and given != parts:
            raise UserError(
                f"{self.root} mixes split folders ({', '.join(sorted(parts))}) with others: "
                f"{', '.join(sorted(given - parts)[:5])}\nmove the others, or pass a folder of class folders"
            )
        folders = [(folder, folder.name, "") for folder in top]
        if has_split:
            named = [(part, "val" if part.name.startswith("val") else part.name) for part in top]
            folders = [(folder, folder.name, split) for part, split in named for folder in subfolders(part, skipped)]
        return _catalog(self.root, folders, skipped)


class CatalogSource(Source):
    """A CSV table of images, ``data.catalog=FILE.csv``, such as a run's ``split.csv``.

    It requires the columns ``path`` and ``label``; ``photograph`` (equal for copies of one photograph) and ``split``
    (train, val or test) are optional, others are ignored.

    Args:
        root: folder the paths are relative to; None: the folder of the table.
        catalog: the file, UTF-8 with a header.
    """

    def __init__(self, root: str | Path | None, catalog: str | Path) -> None:
        self.file = Path(catalog).expanduser()
        self.root = self.file.parent if root is None else Path(root).expanduser()

    def read(self) -> Catalog:
        """Return the catalog.

        Raises:
            UserError: the file, the folder, a column, a label or an image is missing, an image is listed twice, or a
                split is unknown.
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
            raise UserError(f"{where} contains the split '{unknown[0]}'; allowed: {', '.join(SPLITS)}")
        # A relative and an absolute path may be those of one file.
        absolute = any(os.path.isabs(row[0]) for row in rows)  # noqa: PTH117 - for each of a million files
        places = [same_file(self.root / row[0]) if absolute else os.path.normpath(row[0]) for row in rows]
        twice = [path for path, count in Counter(places).items() if count > 1]
        if twice:
            raise UserError(f"{where} lists {len(twice)} images more than once, the first is {twice[0]}")
        absent = [row[0] for row in rows if not os.path.isfile(self.root / row[0])]  # noqa: PTH113 - it never raises
        if absent:
            legacy = "" if absent[0].isprintable() else "\nis the table saved as UTF-8?"
            raise UserError(
                f"{where} lists {len(rows)} images, {len(absent)} of them missing, the first is {absent[0]}\n"
                f"paths are relative to {self.root}; to change it: data.root=DIR{legacy}"
            )
        return make_catalog(self.root, rows)


class SampleSource:
    """The sample data, generated on first use; which images are copies of one photograph is known.

    Args:
        root: folder to generate the data in.
        **arguments: arguments of :class:`fish_lightning.data.sample.recipe.Recipe`.
    """

    def __init__(self, root: str | Path, **arguments: Any) -> None:
        self.root = Path(root).expanduser()
        self.recipe = Recipe(**arguments)

    def prepare(self) -> None:
        """Generate the data if it does not exist.

        Raises:
            UserError: ``root`` was given, and is not a sample set.
        """
        from fish_lightning.data.sample.generate import RECIPE_FILE, make_sample

        # Whoever forgets data=folder must not get a score on drawings, nor drawings among the photographs.
        if self.root.name != self.recipe.folder and not (self.root / RECIPE_FILE).is_file():
            raise UserError(
                f"data.root: {self.root} is not a sample data set; did you mean data=folder or data=fish?\n"
                "for the sample data leave data.root out; to generate it elsewhere: paths.cache=DIR"
            )
        make_sample(self.root, self.recipe)

    def read(self) -> Catalog:
        """Read the archive's layout, with the photographs and, if there is one, the split in ``photographs.csv``."""
        catalog = ArchiveSource(self.root).read()
        table = read_rows(self.root / "photographs.csv", "data.root", ("path", "photograph"))
        row_of = {row["path"]: row for row in table}
        rows = [row_of[path] for path in catalog.paths.tolist()]
        photographs, splits = (np.array([row.get(name, "") for row in rows]) for name in ("photograph", "split"))
        return replace(catalog, photographs=photographs, splits=splits)
