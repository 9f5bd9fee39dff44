"""Splits assign each image of a catalog to train, val or test; ``conf/split`` has one file per function."""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fish_lightning.data.catalog import SPLITS, Catalog
from fish_lightning.errors import UserError
from fish_lightning.files import read_rows
from fish_lightning.names import listed, printable
from fish_lightning.run_log import say

#: How far the share of a split may be from its target before a note is printed: 5 percentage points.
FAR = 0.05
#: A path such as ``bass/fish_012_0034.png``: frame 34 of track, session or day 12. The first group is what is shared.
FRAME = "(.+[0-9])[_-][0-9]+[.]"


def random_split(catalog: Catalog, seed: int, test: float = 0.15, val: float = 0.10) -> npt.NDArray[np.str_]:
    """Split at random, stratified by class, as the notebook does: first ``test``, then ``val`` from the rest.

    Totals are rounded up as in scikit-learn's ``train_test_split``: 9,000 images give 6,885/765/1,350. Copies of one
    photograph end up on both sides; :func:`photograph_split` keeps them together.

    Args:
        catalog: catalog of N images.
        seed: random seed of the shuffle.
        test: share of all images, 0 to 1.
        val: share of what is not test, 0 to 1.

    Returns:
        (N,) split names.

    Raises:
        UserError: there are too few images.
    """
    _require_shares(test=test, val=val)
    rng = np.random.default_rng([seed, 0])
    splits = np.full(len(catalog), "train", dtype="<U5")
    for name, share in (("test", test), ("val", val)):
        splits[_stratified_draw(catalog, np.flatnonzero(splits == "train"), share, rng)] = name
    return _require_enough(catalog, splits)


def photograph_split(catalog: Catalog, seed: int, test: float = 0.15, val: float = 0.10) -> npt.NDArray[np.str_]:
    """Split by photograph, stratified by class: all copies of a photograph are in the same split.

    In each class, shuffled photographs fill test, then val, until it is as close to its target as whole photographs
    allow: within one photograph. An image of unknown photograph is a photograph of its own. A class with a single
    photograph is in train only, one with two is not in val; both are printed.

    Args:
        catalog: catalog of N images with their photographs.
        seed: random seed of the shuffle.
        test: share of all images, 0 to 1.
        val: share of what is not test, 0 to 1.

    Returns:
        (N,) split names.

    Raises:
        UserError: no photograph is known, or there are too few images.
    """
    _require_shares(test=test, val=val)
    numbers, labels, sizes = _photographs(catalog, "photograph")
    splits = np.full(len(sizes), "train", dtype="<U5")  # of each photograph
    for label in range(len(catalog.classes)):
        order = np.flatnonzero(labels == label)
        total = sizes[order].sum()
        order = np.random.default_rng([seed, 1, label]).permutation(order)
        # Photographs larger than the target come last, so that they go to train.
        order = order[np.argsort(sizes[order] > test * total, kind="stable")]
        for later, split, target in ((1, "test", test * total), (0, "val", val * (total - test * total))):
            count = _photographs_for(target, sizes[order], later)
            splits[order[:count]] = split
            order = order[count:]
    counts = np.bincount(labels, minlength=len(catalog.classes))
    _say_of_classes(catalog, counts < 2, "has only one photograph and is missing from val and test")
    _say_of_classes(catalog, counts == 2, "has only two photographs and is missing from val")
    _say_if_far(splits[numbers], test, val)
    return _require_enough(catalog, splits[numbers])


def _say_of_classes(catalog: Catalog, concerned: npt.NDArray[np.bool_], what: str) -> None:
    """Print, in one line, what is true of the classes in a (C,) mask; nothing if there are none."""
    names = np.array(catalog.classes)[concerned].tolist()
    if len(names) == 1:
        say(f"note: class '{printable(names[0])}' {what}")
    elif names:
        say(f"note: each of {len(names):,} classes {what}: {listed(names)}")


def _say_if_far(splits: npt.NDArray[np.str_], test: float, val: float) -> None:
    """Print the shares of train, val and test if one of them is more than ``FAR`` from its target."""
    shares = [float((splits == name).mean()) for name in SPLITS]
    targets = [(1 - test) * (1 - val), (1 - test) * val, test]
    if max(abs(share - target) for share, target in zip(shares, targets, strict=True)) > FAR:
        found, aim = ("/".join(f"{100 * part:.0f}" for part in parts) for parts in (shares, targets))
        say(
            f"note: train/val/test have {found} % of the images, not {aim} %, "
            "since photographs are kept whole and some classes have few, or some with many copies",
        )


def say_if_tracks_are_divided(catalog: Catalog, splits: npt.NDArray[np.str_]) -> None:
    """Print how to keep frames together if names suggest tracks or sessions on both sides of the split.

    That is, if nine of ten names consist of a prefix ending in a number, followed by another number (``FRAME``), there
    are at least three images per prefix, and a test image shares its prefix with a training image.
    """
    found = [re.match(FRAME + "[^./]+$", path) for path in catalog.paths.tolist()]
    tracks = np.array([match[1] if match else "" for match in found])
    framed = tracks != ""
    if framed.sum() < 0.9 * len(catalog) or framed.sum() < 3 * len(np.unique(tracks[framed])):
        return
    tested = (splits == "test") & framed
    divided = tested & np.isin(tracks, tracks[(splits == "train") & framed])
    if divided.any():
        say(
            f"note: {divided.sum():,} of {tested.sum():,} test images are named like training images, such as "
            f"{printable(str(catalog.paths[divided][0]))}: if these are frames of one track or session, "
            f"keep them together with split=photograph data.photograph=\"'{FRAME}'\"",
        )


def leak_warning(catalog: Catalog, split: str) -> str | None:
    """Return a warning if copies of one photograph are in training and test; None if they are not.

    Args:
        catalog: catalog with its splits.
        split: name of the choice in ``conf/split``.
    """
    leaked = int(catalog.leaked().sum())
    if not leaked:
        return None
    kept = " data.keep_split=false" if split == "folders" else ""
    return f"warning: {leaked} test images have a copy in training; split=photograph{kept} keeps copies together"


def say_what_training_would(catalog: Catalog, keep_split: bool, tracks: bool) -> None:
    """Split as ``train`` would without further settings, and print its notes and warnings.

    Args:
        catalog: catalog of N images.
        keep_split: whether to keep a split defined by folders or a table.
        tracks: whether to look for tracks; False where ``data.photograph`` has named them.

    Raises:
        UserError: there are too few images.
    """
    own = keep_split and (catalog.splits != "").any()
    split = folders_split if own else photograph_split if catalog.photographs_known else random_split
    splits = split(catalog, seed=42)
    if warning := leak_warning(catalog.with_splits(splits), "folders" if own else "photograph"):
        say(warning)
    if tracks and not own:
        say_if_tracks_are_divided(catalog, splits)


def _photographs_for(target: float, sizes: npt.NDArray[np.int64], later: int) -> int:
    """Return how many photographs of these sizes come closest to ``target`` images; at least 1 where possible.

    Train and ``later`` other splits need a photograph of the rest.
    """
    left = len(sizes)
    spare = left - max(1, min(1 + later, left - 1))
    return int(np.argmin(np.abs(np.cumsum(sizes)[:spare] - target))) + 1 if spare > 0 else 0


def kfold_split(catalog: Catalog, seed: int, folds: int = 5, fold: int = 0, val: float = 0.10) -> npt.NDArray[np.str_]:
    """Split into k folds by photograph and test on one of them; over all folds each image is tested once.

    In each class, shuffled photographs are assigned to the fold with the fewest images of the class so far; ties go to
    the fold with the fewest images overall.

    Args:
        catalog: catalog of N images with their photographs.
        seed: random seed of the shuffle, the same for all folds.
        folds: number of folds k, 2 or more.
        fold: index of the fold to test on, 0 to k - 1.
        val: share of what is not test, 0 to 1.

    Returns:
        (N,) split names.

    Raises:
        UserError: ``fold`` is out of range, no photograph is known, or there are too few images.
    """
    if folds < 2 or not 0 <= fold < folds:
        raise UserError(f"split.fold={fold} is not one of split.folds={folds}: at least 2 folds, numbered from 0")
    _require_shares(val=val)
    numbers, labels, sizes = _photographs(catalog, "kfold")
    splits = np.full(len(sizes), "train", dtype="<U5")  # of each photograph
    overall = np.zeros(folds, dtype=np.int64)
    counts = np.bincount(labels, minlength=len(catalog.classes))
    for label in np.flatnonzero(counts >= 2).tolist():
        photographs = np.flatnonzero(labels == label)
        rng = np.random.default_rng([seed, 4, label])
        filled = np.zeros(folds, dtype=np.int64)
        fold_of = np.empty(len(sizes), dtype=np.int64)
        for photograph in rng.permutation(photographs):
            least = np.lexsort((overall, filled))[0]  # by filled, then by overall, then by number
            fold_of[photograph] = least
            filled[least] += sizes[photograph]
            overall[least] += sizes[photograph]
        tested = fold_of[photographs] == fold
        splits[photographs[tested]] = "test"
        rest = rng.permutation(photographs[~tested])
        splits[rest[: _photographs_for(val * sizes[rest].sum(), sizes[rest], later=0)]] = "val"
    _say_of_classes(catalog, counts < 2, "has only one photograph, which is in train in all folds")
    return _require_enough(catalog, splits[numbers])


def _require_shares(**shares: float) -> None:
    for name, share in shares.items():
        if not isinstance(share, int | float) or not 0 < share < 1:
            raise UserError(f"split.{name}={share}: must be a fraction between 0 and 1")


def _photographs(
    catalog: Catalog, split: str
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the (N,) photograph of each image, and the (P,) label and number of images of each photograph.

    Its label is the most common one of its copies, so that copies with two labels stay together.
    """
    if not catalog.photographs_known:
        raise UserError(
            f"split={split}: it is unknown which images of {catalog.root} are copies of one photograph\n"
            "search for near-duplicates (data.find_copies=true), use data.photograph=REGEX, or split=random"
        )
    numbers = catalog.photograph_numbers
    counts = np.zeros((numbers.max() + 1, len(catalog.classes)), dtype=np.int64)
    np.add.at(counts, (numbers, catalog.labels), 1)
    return numbers, counts.argmax(axis=1), counts.sum(axis=1)


def folders_split(catalog: Catalog, seed: int) -> npt.NDArray[np.str_]:
    """Keep the split given by the folders ``train``, ``val`` and ``test``, or by a table.

    A missing ``test`` (or ``val``) is drawn from ``train``: 15 % (10 %), stratified by class, and by photograph where
    photographs are known.

    Raises:
        UserError: the data set has no split of its own, or there are too few images.
    """
    splits: npt.NDArray[np.str_] = catalog.splits.astype("<U5")
    if not (splits == "train").any():
        raise UserError(
            f"split=folders: {catalog.root} has no folders train, val and test\nadd them, or use split=photograph"
        )
    for number, (name, share) in enumerate((("test", 0.15), ("val", 0.10))):
        if not (splits == name).any():
            train = np.flatnonzero(splits == "train")
            draw = _draw_photographs if catalog.photographs_known else _stratified_draw
            splits[draw(catalog, train, share, np.random.default_rng([seed, 2, number]))] = name
    return _require_enough(catalog, splits)


def file_split(catalog: Catalog, seed: int, path: str) -> npt.NDArray[np.str_]:
    """Use the ``split.csv`` of another run, matched by path; images missing from it are excluded.

    Args:
        catalog: catalog of N images.
        seed: unused.
        path: CSV file with columns ``path`` and ``split``.

    Raises:
        UserError: the file is missing or malformed, or contains an unknown split or image.
    """
    del seed
    file = Path(path)
    rows = read_rows(file, "split.path", ("path", "split"))
    given = {row["path"]: row["split"] for row in rows}
    unknown = sorted(set(given.values()) - {*SPLITS, ""})
    if unknown:
        raise UserError(f"split.path: {file} contains the split '{unknown[0]}'; allowed: {', '.join(SPLITS)}")
    absent = sorted(set(given) - set(catalog.paths.tolist()))
    if absent:
        raise UserError(
            f"split.path: {file} lists {len(absent)} images that are not in {catalog.root}, the first is {absent[0]}\n"
            "paths are relative to data.root: use the data.root that the split was created with"
        )
    splits = np.array([given.get(str(p), "") for p in catalog.paths], dtype="<U5")
    return _require_enough(catalog, splits)


class RecordedSplit:  # no dataclass, which Hydra would take for a config
    """Keeps the split in the catalog: that of the run that wrote the checkpoint.

    Args:
        name: name of the run's split.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, catalog: Catalog, seed: int) -> npt.NDArray[np.str_]:
        """Return the splits of the catalog."""
        return catalog.splits


def name_of_split(split: Any) -> str:
    """Return the choice of ``conf/split`` that a split comes from, or the ``split._target_`` of any other function."""
    if isinstance(split, RecordedSplit):
        return split.name
    function = getattr(split, "func", split)  # of Hydra's partial
    if function.__module__ == __name__:
        return str(function.__name__).removesuffix("_split")
    return f"{function.__module__}.{function.__qualname__}"


def _stratified_draw(
    catalog: Catalog, rows: npt.NDArray[np.int64], share: float, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Draw ``share`` of ``rows``, rounded up, stratified by class (largest remainder method)."""
    labels, count = catalog.labels[rows], math.ceil(len(rows) * share)
    classes, sizes = np.unique(labels, return_counts=True)
    exact = sizes * count / len(rows)
    quota = np.floor(exact).astype(int)
    # Break ties at random, not alphabetically: with classes of equal size all remainders are equal.
    order = np.lexsort((rng.random(len(classes)), -(exact - quota)))
    quota[order[: count - quota.sum()]] += 1
    drawn = [rng.permutation(rows[labels == c])[:q] for c, q in zip(classes, quota, strict=True)]
    return np.sort(np.concatenate(drawn))


def _draw_photographs(
    catalog: Catalog, rows: npt.NDArray[np.int64], share: float, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Draw about ``share`` of ``rows`` by photograph, stratified by class; at least one photograph of each remains."""
    numbers, labels, _ = _photographs(catalog, "folders")
    sizes = np.bincount(numbers[rows], minlength=len(labels))
    drawn = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels[numbers[rows]]):
        order = rng.permutation(np.flatnonzero((labels == label) & (sizes > 0)))
        drawn[order[: _photographs_for(share * sizes[order].sum(), sizes[order], later=0)]] = True
    return rows[drawn[numbers[rows]]]


def _require_enough(catalog: Catalog, splits: npt.NDArray[np.str_]) -> npt.NDArray[np.str_]:
    """Return ``splits`` if train has an image of each class, and val and test have an image each."""
    untrained = sorted(set(catalog.classes) - {catalog.classes[label] for label in catalog.labels[splits == "train"]})
    empty = [name for name in ("val", "test") if not (splits == name).any()]
    if untrained or empty:
        lacks = [f"none of class '{name}' in train" for name in untrained[:3]] + [f"none in {name}" for name in empty]
        raise UserError(
            f"too few images for this split: {len(catalog)} images of {len(catalog.classes)} classes in {catalog.root}"
            f" leave {', '.join(lacks)}\nadd images, or choose another split"
        )
    return splits
