"""Splits assign train, val and test to the rows of a catalog. Each is a function of (catalog, its own arguments)."""

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fish_lightning.data.catalog import SPLITS, Catalog
from fish_lightning.errors import UserError
from fish_lightning.files import read_rows


def random_split(catalog: Catalog, seed: int, test: float = 0.15, val: float = 0.10) -> npt.NDArray[np.str_]:
    """The notebook's split: ``test`` of all images first, then ``val`` of the rest, shuffled and stratified.

    Totals round up as scikit-learn's ``train_test_split`` does: 9,000 gives 6,885/765/1,350. Copies of one photograph
    fall on both sides; ``split=photograph`` keeps them together.

    Args:
        catalog: N images.
        seed: of the shuffle.
        test: share of all images, 0 to 1.
        val: share of what is not test, 0 to 1.

    Returns:
        (N,) names of splits.

    Raises:
        UserError: too few images for one of each class in training.
    """
    _require_shares(test=test, val=val)
    rng = np.random.default_rng([seed, 0])
    everything = np.arange(len(catalog))
    n_test = math.ceil(len(catalog) * test)
    n_val = math.ceil((len(catalog) - n_test) * val)
    tested = _stratified_draw(everything, catalog.labels, n_test, rng)
    rest = np.setdiff1d(everything, tested)
    validated = _stratified_draw(rest, catalog.labels[rest], n_val, rng)
    return _require_enough(catalog, _columns(len(catalog), validated, tested))


def photograph_split(catalog: Catalog, seed: int, test: float = 0.15, val: float = 0.10) -> npt.NDArray[np.str_]:
    """Whole photographs only: no copy of a training photograph is validated or tested on.

    In each class, photographs are taken in a shuffled order until test, then val, is as near its target as whole
    photographs allow: within one photograph of it. An image without a known photograph counts as a photograph of its
    own. A class with a single photograph is trained on and not tested, one with two is not validated; it is said.

    Args:
        catalog: N images with their photographs.
        seed: of the shuffle.
        test: share of all images, 0 to 1.
        val: share of what is not test, 0 to 1.

    Returns:
        (N,) names of splits.

    Raises:
        UserError: no photograph is known.
    """
    _require_shares(test=test, val=val)
    names = _photographs(catalog, "photograph")
    labels = _labels_of_photographs(catalog, names)
    splits = np.full(len(catalog), "train", dtype="<U5")
    for label, class_name in enumerate(catalog.classes):
        rows = np.flatnonzero(labels == label)
        groups, sizes = np.unique(names[rows], return_counts=True)
        if len(groups) < 3:
            missing = "validated or tested" if len(groups) < 2 else "validated"
            print(f"note: class '{class_name}' has {len(groups)} photograph(s): it is trained on, but not {missing}")
        order = np.random.default_rng([seed, 1, label]).permutation(len(groups))
        n_test = test * len(rows)
        order = order[np.argsort(sizes[order] > n_test, kind="stable")]  # what is larger than the target is trained on
        targets = {"test": n_test, "val": val * (len(rows) - n_test)}
        start = 0
        for later, (split, target) in zip((1, 0), targets.items(), strict=True):
            count = _photographs_for(target, sizes[order[start:]], later)
            chosen = groups[order[start : start + count]]
            splits[rows[np.isin(names[rows], chosen)]] = split
            start += count
    return _require_enough(catalog, splits)


def _photographs_for(target: float, sizes: npt.NDArray[np.int64], later: int) -> int:
    """How many photographs, in this order, come nearest to ``target`` images; 1 at least where that can be.

    Args:
        target: number of images.
        sizes: images of each photograph.
        later: splits that want a photograph of the rest, besides the one that is left to train on.
    """
    left = len(sizes)
    spare = left - max(1, min(1 + later, left - 1))
    return int(np.argmin(np.abs(np.cumsum(sizes)[:spare] - target))) + 1 if spare > 0 else 0


def _labels_of_photographs(catalog: Catalog, names: npt.NDArray[np.str_]) -> npt.NDArray[np.int64]:
    """(N,) the label that most copies of each image's photograph have: copies under two labels stay together too."""
    _, groups = np.unique(names, return_inverse=True)
    counts = np.zeros((groups.max() + 1, len(catalog.classes)), dtype=np.int64)
    np.add.at(counts, (groups, catalog.labels), 1)
    labels: npt.NDArray[np.int64] = counts.argmax(axis=1)[groups]
    return labels


def kfold_split(catalog: Catalog, seed: int, folds: int = 5, fold: int = 0, val: float = 0.10) -> npt.NDArray[np.str_]:
    """One of k folds of whole photographs is tested; over all folds each image is tested once.

    In each class, photographs go in a shuffled order to the fold that has the fewest images so far.

    Args:
        catalog: N images with their photographs.
        seed: of the shuffle; the same for all folds.
        folds: k, 2 or more.
        fold: the one to test, 0 to k - 1.
        val: share of what is not test, 0 to 1.

    Returns:
        (N,) names of splits.

    Raises:
        UserError: a fold that is none of them, or no photograph is known.
    """
    if folds < 2 or not 0 <= fold < folds:
        raise UserError(f"split=kfold: split.fold={fold} of split.folds={folds}; folds are numbered from 0, 2 at least")
    _require_shares(val=val)
    names = _photographs(catalog, "kfold")
    splits = np.full(len(catalog), "train", dtype="<U5")
    labels = _labels_of_photographs(catalog, names)
    for label, class_name in enumerate(catalog.classes):
        rows = np.flatnonzero(labels == label)
        groups, sizes = np.unique(names[rows], return_counts=True)
        if len(groups) < 2:
            print(f"note: class '{class_name}' has 1 photograph: it is trained on in all folds, and not tested")
            continue
        rng = np.random.default_rng([seed, 4, label])
        filled = np.zeros(folds, dtype=np.int64)
        fold_of = np.empty(len(groups), dtype=np.int64)
        for group in rng.permutation(len(groups)):
            fold_of[group] = np.argmin(filled)
            filled[fold_of[group]] += sizes[group]
        splits[rows[np.isin(names[rows], groups[fold_of == fold])]] = "test"
        rest = rng.permutation(np.flatnonzero(fold_of != fold))
        target = val * sizes[rest].sum()
        count = int(np.argmin(np.abs(np.cumsum(sizes[rest])[:-1] - target))) + 1 if len(rest) > 1 else 0
        splits[rows[np.isin(names[rows], groups[rest[:count]])]] = "val"
    return _require_enough(catalog, splits)


def _require_shares(**shares: float) -> None:
    for name, share in shares.items():
        if not isinstance(share, int | float) or not 0 < share < 1:
            raise UserError(f"split.{name}={share}: it is a share of the images, above 0 and below 1")


def _photographs(catalog: Catalog, split: str) -> npt.NDArray[np.str_]:
    """(N,) photograph of each image, an image of its own where that is unknown."""
    if not catalog.photographs_known:
        raise UserError(
            f"split={split}: it is not known which images of {catalog.root} are copies of one photograph\n"
            "let them be found (data.find_copies=true), say it by data.photograph=REGEX, or use split=random"
        )
    return catalog.photographs_or_paths


def folders_split(catalog: Catalog, seed: int) -> npt.NDArray[np.str_]:
    """Keep the split that the folders ``train``, ``val`` and ``test`` say.

    Where there is no ``val`` (or no ``test``) folder, it is drawn from ``train``: 10 % (15 %), stratified, by whole
    photographs where these are known.

    Raises:
        UserError: the data set is not laid out in split folders.
    """
    splits: npt.NDArray[np.str_] = catalog.splits.astype("<U5")
    if not (splits == "train").any():
        raise UserError(
            f"split=folders: {catalog.root} has no folders train, val and test\nuse split=photograph, or add them."
        )
    for number, (name, share) in enumerate((("test", 0.15), ("val", 0.10))):
        if not (splits == name).any():
            train = np.flatnonzero(splits == "train")
            rng = np.random.default_rng([seed, 2, number])
            if catalog.photographs_known:
                splits[_draw_photographs(catalog, train, share, rng)] = name
            else:
                splits[_stratified_draw(train, catalog.labels[train], math.ceil(len(train) * share), rng)] = name
    return _require_enough(catalog, splits)


def file_split(catalog: Catalog, seed: int, path: str) -> npt.NDArray[np.str_]:
    """Replay the ``split.csv`` of another run: rows are matched by path; images it does not name are left out.

    Args:
        catalog: N images.
        seed: not used: the file says it all.
        path: the file, with columns ``path`` and ``split``.

    Raises:
        UserError: the file is missing or malformed, names an unknown split, or an image that is not there.
    """
    del seed
    file = Path(path)
    rows = read_rows(file, "split.path", ("path", "split"))
    given = {row["path"]: row["split"] for row in rows}
    unknown = sorted(set(given.values()) - {*SPLITS, ""})
    if unknown:
        raise UserError(f"split.path: {file} names the split '{unknown[0]}'; allowed are {', '.join(SPLITS)}.")
    absent = sorted(set(given) - set(catalog.paths.tolist()))
    if absent:
        raise UserError(
            f"split.path: {file} names {len(absent)} images that are not in {catalog.root}, the first {absent[0]}\n"
            "paths are relative to data.root: give the data.root that the split was made with."
        )
    splits = np.array([given.get(str(p), "") for p in catalog.paths], dtype="<U5")
    return _require_enough(catalog, splits)


def recorded_split(catalog: Catalog, seed: int) -> npt.NDArray[np.str_]:
    """The split that the catalog has already: that of the run which a checkpoint comes from."""
    del seed
    splits: npt.NDArray[np.str_] = catalog.splits
    return splits


def _stratified_draw(
    rows: npt.NDArray[np.int64], labels: npt.NDArray[np.int64], count: int, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """``count`` of ``rows``, each class in proportion; what rounding leaves over goes to the largest remainders."""
    classes, sizes = np.unique(labels, return_counts=True)
    exact = sizes * count / len(rows)
    quota = np.floor(exact).astype(int)
    # Ties are broken by chance, not by the alphabet: with equal classes the remainders are all equal.
    order = np.lexsort((rng.random(len(classes)), -(exact - quota)))
    quota[order[: count - quota.sum()]] += 1
    drawn = [rng.permutation(rows[labels == c])[:q] for c, q in zip(classes, quota, strict=True)]
    return np.sort(np.concatenate(drawn))


def _draw_photographs(
    catalog: Catalog, rows: npt.NDArray[np.int64], share: float, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """About ``share`` of ``rows`` in whole photographs, each class in proportion; one of each is left over."""
    names = _photographs(catalog, "folders")
    labels = _labels_of_photographs(catalog, names)[rows]
    drawn = []
    for label in np.unique(labels):
        groups, sizes = np.unique(names[rows[labels == label]], return_counts=True)
        order = rng.permutation(len(groups))
        chosen = groups[order[: _photographs_for(share * sizes.sum(), sizes[order], later=0)]]
        drawn.append(rows[np.isin(names[rows], chosen)])
    return np.sort(np.concatenate(drawn))


def _columns(n: int, val: npt.NDArray[np.int64], test: npt.NDArray[np.int64]) -> npt.NDArray[np.str_]:
    splits = np.full(n, "train", dtype="<U5")
    splits[val] = "val"
    splits[test] = "test"
    return splits


def _require_enough(catalog: Catalog, splits: npt.NDArray[np.str_]) -> npt.NDArray[np.str_]:
    """``splits``, if each class has an image to train on, and validation and test have one."""
    untrained = sorted(set(catalog.classes) - {catalog.classes[label] for label in catalog.labels[splits == "train"]})
    empty = [name for name in ("val", "test") if not (splits == name).any()]
    if untrained or empty:
        lacks = [f"none of '{name}' to train on" for name in untrained[:3]] + [f"none in {name}" for name in empty]
        raise UserError(
            f"too few images for this split: {len(catalog)} images of {len(catalog.classes)} classes in {catalog.root}"
            f" leave {', '.join(lacks)}\nadd images, or choose another split."
        )
    return splits
