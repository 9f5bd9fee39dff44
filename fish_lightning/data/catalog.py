"""The catalog of a data set: path, label, photograph and split of every image.

A source creates it, a split assigns its last column, ``split.csv`` in the run folder shows it, and the checkpoint
contains it, so that a later evaluation scores the same images. A *photograph* is the group of all images that are
copies of one photograph.
"""

import os
import re
import unicodedata
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


class EmptyClassError(UserError):
    """A class folder without an image.

    Attributes:
        names: of the empty classes.
        catalog: of the other classes.
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

    def copies_of(self, photographs: npt.NDArray[np.str_]) -> npt.NDArray[np.bool_]:
        """Return (N,) whether an image is a copy of one of these photographs, which may include ``""``."""
        copied: npt.NDArray[np.bool_] = np.isin(self.photographs, np.unique(photographs)) & (self.photographs != "")
        return copied


@dataclass(frozen=True)
class Catalog(OfPhotographs):
    """A table of N images. Its columns are arrays: lists would be copied page by page into each loader worker.

    Attributes:
        root: folder that ``paths`` are relative to.
        paths: (N,) text, POSIX style, sorted.
        labels: (N,) int64, indices into ``classes``.
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

    def with_splits(self, splits: npt.NDArray[np.str_]) -> "Catalog":
        """Return the catalog with another split column."""
        return replace(self, splits=splits)

    def with_photographs(self, photographs: npt.NDArray[np.str_]) -> "Catalog":
        """Return the catalog with another photograph column."""
        return replace(self, photographs=photographs)

    def leaked(self) -> npt.NDArray[np.bool_]:
        """Return (N,) whether an image is in the test split while a copy of it is in the training split."""
        copied = self.copies_of(self.photographs[self.splits == "train"])
        leaked: npt.NDArray[np.bool_] = np.logical_and(self.splits == "test", copied)
        return leaked

    def indices(self, split: str) -> npt.NDArray[np.int64]:
        """Return the indices of one split, or of all images for ``"all"``."""
        return np.arange(len(self)) if split == "all" else np.flatnonzero(self.splits == split)

    def counts(self) -> dict[str, int]:
        """Count the images of train, val and test."""
        return {split: int((self.splits == split).sum()) for split in SPLITS}

    def file_states(self) -> npt.NDArray[np.int64]:
        """Return (N, 2) size and modification time of each image's file; see :func:`changed_files`."""
        root = str(self.root)
        states = [size_and_time(os.path.join(root, path)) for path in self.paths.tolist()]  # noqa: PTH118
        return np.array(states, dtype=np.int64)

    def write_csv(self, path: Path) -> None:
        """Write the table as CSV, atomically; it is read again, so paths and names keep their bytes."""
        with csv_table(path) as rows:
            rows.writerow(COLUMNS)
            for i in range(len(self)):
                rows.writerow((self.paths[i], self.classes[self.labels[i]], self.photographs[i], self.splits[i]))

    def state(self) -> dict[str, Any]:
        """Return plain containers for a checkpoint; :meth:`from_state` restores them."""
        return {
            "root": str(self.root.resolve()),
            "paths": self.paths.tolist(),
            "labels": self.labels.tolist(),
            "photographs": self.photographs.tolist(),
            "splits": self.splits.tolist(),
            "classes": list(self.classes),
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "Catalog":
        """Restore the catalog from :meth:`state`."""
        return cls(
            root=Path(state["root"]),
            paths=np.array(state["paths"], dtype=np.str_),
            labels=np.array(state["labels"], dtype=np.int64),
            photographs=np.array(state["photographs"], dtype=np.str_),
            splits=np.array(state["splits"], dtype=np.str_),
            classes=tuple(state["classes"]),
        )


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
    names = sorted({label for _, label, _, _ in rows})
    number = {name: i for i, name in enumerate(names)}
    rows = sorted(rows)
    catalog = Catalog(
        root=root,
        paths=np.array([row[0] for row in rows], dtype=np.str_),
        labels=np.array([number[row[1]] for row in rows], dtype=np.int64),
        photographs=np.array([row[2] for row in rows], dtype=np.str_),
        splits=np.array([row[3] for row in rows], dtype=np.str_),
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
    """Return the names, in quotes, of which others differ in case, spaces or Unicode form only."""
    by_key: dict[str, list[str]] = {}
    for name in names:
        by_key.setdefault("".join(unicodedata.normalize("NFKC", name).casefold().split()), []).append(name)
    return [[f"'{printable(name)}'" for name in same] for same in by_key.values() if len(same) > 1]


def changed_files(
    then: npt.NDArray[np.int64], now: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Compare files by :meth:`Catalog.file_states`, without reading them.

    Returns:
        Indices of the files of another size, and of those of the same size that have been written since. The latter
        is empty where all times differ: the data set has been copied.
    """
    size, time = (then != now).T
    written = time & ~size
    return np.flatnonzero(size), np.flatnonzero(written if not time.all() else np.zeros_like(written))


def without_class(catalog: Catalog, which: int | str) -> tuple[Catalog, Catalog]:
    """Leave one class out.

    Args:
        catalog: with its splits.
        which: index of the class, in the order of its names, or its name.

    Returns:
        The catalog of the other classes, numbered anew; and that of the images of the class in the test split, which
        has the same class names and the label -1 for all images.

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
    kept, tested = catalog.labels != which, (catalog.labels == which) & (catalog.splits == "test")
    columns = ("paths", "labels", "photographs", "splits")
    rest, left_out = (
        replace(catalog, classes=classes, **{column: getattr(catalog, column)[rows] for column in columns})
        for rows in (kept, tested)
    )
    return (
        replace(rest, labels=np.where(rest.labels > which, rest.labels - 1, rest.labels)),
        replace(left_out, labels=np.full(len(left_out), -1, dtype=np.int64)),
    )


def named_photographs(catalog: Catalog, pattern: str) -> npt.NDArray[np.str_]:
    """Derive the photograph of each image from its path.

    Args:
        catalog: N images.
        pattern: regular expression searched in each path; images of one class share a photograph if its first group
            (the whole match, if it has none) is the same. An image without a match is a photograph of its own.

    Returns:
        (N,) text.

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
