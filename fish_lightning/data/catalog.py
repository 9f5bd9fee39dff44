"""The catalog of a data set: path, label, photograph and split of every image.

A source creates it, a split assigns its last column, ``split.csv`` in the run folder shows it, and the checkpoint
contains it, so that a later evaluation scores the same images. A *photograph* is the group of all images that are
copies of one photograph.
"""

import os
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fish_lightning.errors import UserError
from fish_lightning.files import csv_table, size_and_time
from fish_lightning.names import listed, printable
from fish_lightning.run_log import say

SPLITS = ("train", "val", "test")
COLUMNS = ("path", "label", "photograph", "split")
#: The columns of a :class:`Catalog`.
_TYPES: dict[str, Any] = {"paths": np.str_, "labels": np.int64, "photographs": np.str_, "splits": np.str_}


class EmptyClassError(UserError):
    """A class folder without an image.

    Attributes:
        names: names of the empty classes.
        catalog: catalog of the other classes.
    """

    def __init__(self, names: list[str], catalog: "Catalog") -> None:
        super().__init__(
            f"class folder without an image: {listed(names)} (in {catalog.root})\n"
            "add images to it, or remove the folder"
        )
        self.names, self.catalog = names, catalog


class OfPhotographs:
    """A table of images of which some are copies of one photograph."""

    paths: npt.NDArray[np.str_]
    photographs: npt.NDArray[np.str_]

    @property
    def photographs_known(self) -> bool:
        """Whether it is known which images are copies of one photograph."""
        return bool((self.photographs != "").any())

    @property
    def photographs_or_paths(self) -> npt.NDArray[np.str_]:
        """(N,) photograph of each image; an image of unknown photograph is one of its own, named by its path."""
        return np.where(self.photographs == "", self.paths, self.photographs)

    @property
    def photograph_numbers(self) -> npt.NDArray[np.int64]:
        """(N,) number of each image's photograph, in the order of their names."""
        return np.unique(self.photographs_or_paths, return_inverse=True)[1]

    def copies_of(self, photographs: npt.NDArray[np.str_]) -> npt.NDArray[np.bool_]:
        """Return an (N,) mask of the images that are copies of one of these photographs, which may include ``""``."""
        return np.asarray(np.isin(self.photographs, np.unique(photographs)) & (self.photographs != ""))


@dataclass(frozen=True)
class Catalog(OfPhotographs):
    """A table of N images. Its columns are arrays: lists would be copied page by page into each loader worker.

    Attributes:
        root: folder that ``paths`` are relative to.
        paths: (N,) text, sorted paths in POSIX style.
        labels: (N,) int64, class indices into ``classes``.
        photographs: (N,) text, name of the photograph that an image is a copy of; ``""`` if unknown.
        splits: (N,) text, one of ``SPLITS``, or ``""`` (not yet assigned, or excluded).
        classes: class names, sorted.
    """

    root: Path
    paths: npt.NDArray[np.str_]
    labels: npt.NDArray[np.int64]
    photographs: npt.NDArray[np.str_]
    splits: npt.NDArray[np.str_]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def files(self) -> list[Path]:
        """File of each image."""
        return [self.root / path for path in self.paths.tolist()]

    def take(self, rows: npt.NDArray[Any]) -> "Catalog":
        """Return the catalog of some images.

        Args:
            rows: indices of the images, or an (N,) mask.
        """
        return replace(self, **{column: getattr(self, column)[rows] for column in _TYPES})

    def with_splits(self, splits: npt.NDArray[np.str_]) -> "Catalog":
        """Return the catalog with another split column."""
        return replace(self, splits=splits)

    def with_photographs(self, photographs: npt.NDArray[np.str_]) -> "Catalog":
        """Return the catalog with another photograph column."""
        return replace(self, photographs=photographs)

    def leaked(self) -> npt.NDArray[np.bool_]:
        """Return an (N,) mask of the test images that have a copy in the training split."""
        copied = self.copies_of(self.photographs[self.splits == "train"])
        return np.asarray(np.logical_and(self.splits == "test", copied))

    def indices(self, split: str) -> npt.NDArray[np.int64]:
        """Return the indices of one split, or of all images for ``"all"``."""
        return np.arange(len(self)) if split == "all" else np.flatnonzero(self.splits == split)

    def counts(self) -> dict[str, int]:
        """Count the images of train, val and test."""
        return {split: int((self.splits == split).sum()) for split in SPLITS}

    def file_states(self) -> npt.NDArray[np.int64]:
        """Return the size and modification time of each image's file, (N, 2)."""
        root = str(self.root)
        states = [size_and_time(os.path.join(root, path)) for path in self.paths.tolist()]  # noqa: PTH118
        return np.array(states, dtype=np.int64)

    def write_csv(self, path: Path) -> None:
        """Write the table as CSV, atomically; it is read again, so paths and names keep their bytes."""
        names = np.array(self.classes)[self.labels]
        with csv_table(path) as rows:
            rows.writerows([COLUMNS, *zip(self.paths, names, self.photographs, self.splits, strict=True)])

    def state(self) -> dict[str, Any]:
        """Return plain containers for a checkpoint; :meth:`from_state` restores them."""
        columns = {column: getattr(self, column).tolist() for column in _TYPES}
        return {"root": str(self.root.resolve()), **columns, "classes": list(self.classes)}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "Catalog":
        """Restore the catalog from :meth:`state`."""
        columns = {column: np.array(state[column], dtype) for column, dtype in _TYPES.items()}
        return cls(root=Path(state["root"]), **columns, classes=tuple(state["classes"]))


def make_catalog(root: Path, rows: list[tuple[str, str, str, str]], classes: list[str] | None = None) -> Catalog:
    """Create a catalog, sorted by path, from rows (path, class name, photograph, split).

    Args:
        root: folder that the paths are relative to.
        rows: one tuple per image.
        classes: all class names; by default those of the rows.

    Raises:
        UserError: there are no images, or fewer than two classes.
        EmptyClassError: one of ``classes`` has no image.
    """
    if not rows:
        raise UserError(
            f"no images in {root}\nexpected {root}/<class>/<image>, or the layout of the fish archive (data=fish)"
        )
    paths, labels, photographs, splits = zip(*sorted(rows), strict=True)
    names = sorted(set(labels))
    number = {name: i for i, name in enumerate(names)}
    catalog = Catalog(
        root=root,
        paths=np.array(paths, dtype=np.str_),
        labels=np.array([number[label] for label in labels], dtype=np.int64),
        photographs=np.array(photographs, dtype=np.str_),
        splits=np.array(splits, dtype=np.str_),
        classes=tuple(names),
    )
    empty = sorted(set(classes or ()) - set(names))
    if empty:
        raise EmptyClassError(empty, catalog)
    if len(names) < 2:
        raise UserError(f"only one class, '{names[0]}', in {root}\na classifier requires at least two class folders")
    for alike in _alike(names)[:3]:
        say(f"note: class names that differ only in case or spaces: {listed(alike)}")
    return catalog


def _alike(names: list[str]) -> list[list[str]]:
    """Return the groups of names, in quotes, that differ only in case, spaces or Unicode form."""
    by_key: dict[str, list[str]] = {}
    for name in names:
        by_key.setdefault("".join(unicodedata.normalize("NFKC", name).casefold().split()), []).append(name)
    return [[f"'{printable(name)}'" for name in same] for same in by_key.values() if len(same) > 1]


def without_class(catalog: Catalog, which: int | str) -> tuple[Catalog, Catalog]:
    """Leave one class out.

    Args:
        catalog: catalog with its splits.
        which: name of the class, or its index in the order of class names.

    Returns:
        The catalog of the other classes, renumbered; and the catalog of the left-out class's test images, which has the
        same class names and the label -1 for all images.

    Raises:
        UserError: there is no such class, or fewer than two would be left.
    """
    names = catalog.classes
    if isinstance(which, str) and which in names:
        which = names.index(which)
    if isinstance(which, str) or not 0 <= which < len(names):
        raise UserError(
            f"data.leave_out={which}: expected an index from 0 to {len(names) - 1}, or one of {listed(list(names))}"
        )
    if len(names) < 3:
        raise UserError(f"data.leave_out={which}: at least 2 classes must remain, not {len(names) - 1}")
    classes = names[:which] + names[which + 1 :]
    tested = (catalog.labels == which) & (catalog.splits == "test")
    rest, left_out = catalog.take(catalog.labels != which), catalog.take(tested)
    return (
        replace(rest, labels=rest.labels - (rest.labels > which), classes=classes),
        replace(left_out, labels=np.full(len(left_out), -1, dtype=np.int64), classes=classes),
    )


def joined_catalog(catalogs: Sequence[Catalog], names: Sequence[str]) -> Catalog:
    """Join the catalogs of several runs on one data set.

    An image is ``train`` if any run was trained on it or on a copy of it, and ``test`` if it is a test image of every
    run. It is ``val`` if no run was trained on it, but some were validated on it: their best epochs were chosen on such
    images, so that a temperature and thresholds can be fitted on them, and a score on them is a little too high. Images
    that are missing from a run have no split.

    Args:
        catalogs: catalogs with their splits, all with the same classes.
        names: names of the runs, for errors.

    Raises:
        UserError: their images are in different folders or have different labels.
    """
    first = catalogs[0]
    for name, other in zip(names, catalogs, strict=True):
        if other.root != first.root:
            raise UserError(
                f"runs: {names[0]} was trained on images in {first.root}, {name} in {other.root}\n"
                "the members of an ensemble are trained on one data set"
            )
    paths = np.unique(np.concatenate([catalog.paths for catalog in catalogs]))
    labels = np.full(len(paths), -1, dtype=np.int64)
    photographs = np.full(len(paths), "", dtype=np.result_type(*(catalog.photographs for catalog in catalogs)))
    trained, tested, held_out = (np.full(len(paths), value) for value in (False, True, True))
    for name, catalog in zip(names, catalogs, strict=True):
        at = np.searchsorted(paths, catalog.paths)
        differing = np.flatnonzero((labels[at] >= 0) & (labels[at] != catalog.labels))
        if len(differing):
            known, other_label = (first.classes[column[differing[0]]] for column in (labels[at], catalog.labels))
            raise UserError(
                f"runs: {name} has other labels than the runs before it for {len(differing):,} images, for example\n"
                f"{catalog.paths[differing[0]]}: {other_label} instead of {known}"
            )
        labels[at] = catalog.labels
        photographs[at] = np.where(photographs[at] == "", catalog.photographs, photographs[at])
        units = catalog.photographs_or_paths
        trained[at] |= np.isin(units, units[catalog.splits == "train"])
        here = {split: np.isin(paths, catalog.paths[catalog.splits == split]) for split in ("val", "test")}
        tested &= here["test"]
        held_out &= here["val"] | here["test"]
    joined = Catalog(first.root, paths, labels, photographs, np.full(len(paths), "", dtype="<U5"), first.classes)
    units = joined.photographs_or_paths
    trained |= np.isin(units, units[trained])  # where the runs group copies differently
    return joined.with_splits(np.select([trained, tested, held_out], ["train", "test", "val"], default=""))


def named_photographs(catalog: Catalog, pattern: str) -> npt.NDArray[np.str_]:
    """Derive the photograph of each image from its path.

    Args:
        catalog: catalog of N images.
        pattern: regular expression searched in each path; images of one class share a photograph if its first group
            (the whole match, if it has none) is the same. An image without a match is a photograph of its own.

    Returns:
        (N,) photograph names.

    Raises:
        UserError: the pattern is not a regular expression, or matches no path.
    """
    try:
        found = [re.search(pattern, path) for path in catalog.paths.tolist()]
    except re.error as error:
        raise UserError(f"data.photograph: '{pattern}' is not a regular expression ({error})") from None
    if not any(found):
        raise UserError(f"data.photograph: '{pattern}' matches none of the paths, such as {catalog.paths[0]}")
    names = [
        f"{catalog.classes[label]}/{match.group(1) if match.re.groups else match.group()}" if match else path
        for path, label, match in zip(catalog.paths.tolist(), catalog.labels, found, strict=True)
    ]
    return np.array(names, dtype=np.str_)
