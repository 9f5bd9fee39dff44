"""The catalog of an ensemble: which images none of its members was trained on."""

from collections.abc import Sequence

import numpy as np

from fish_lightning.data.catalog import Catalog
from fish_lightning.errors import UserError


def joined_catalog(catalogs: Sequence[Catalog], names: Sequence[str]) -> Catalog:
    """Join the catalogs of several runs on one data set.

    An image is ``train`` if any run was trained on it or on a copy of it, and ``test`` if it is a test image of every
    run. It is ``val`` if no run was trained on it, but some were validated on it: their best epochs were chosen on such
    images, so that a temperature and thresholds can be fitted on them, and a score on them is a little too high. Images
    that a run does not know have no split.

    Args:
        catalogs: with their splits and the same classes.
        names: of the runs, for errors.

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
