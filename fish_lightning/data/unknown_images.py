"""Images of none of the classes, for ``evaluate unknown=DIR``: copies of the run's own images are left out."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fish_lightning.data.catalog import Catalog
from fish_lightning.data.folders import same_file
from fish_lightning.data.near_duplicates.search import cache_file, find_photographs, photograph_names
from fish_lightning.errors import UserError
from fish_lightning.hardware import cores

SPLIT = "unknown"  # of these images, which are in no split of the run


@dataclass(frozen=True)
class UnknownImages:
    """Images of none of the classes.

    Attributes:
        catalog: the images that are left, with their photographs.
        copies: paths of the images left out, copies of an image that the model was trained, validated or tested on.
        missing: number of images of the run that no longer exist, so that copies of them cannot be found.
    """

    catalog: Catalog
    copies: list[str]
    missing: int


def without_copies(catalog: Catalog, run: Catalog, tested: Catalog, cache: Path | None) -> UnknownImages:
    """Leave out the images that are copies of known ones, by a near-duplicate search.

    Args:
        catalog: all images that are said to be of none of the classes.
        run: the images of the training run, of any split.
        tested: the images of the evaluation, which may be the same ones or in another folder.
        cache: folder for the result of the search; None: it is not cached.

    Raises:
        UserError: no image is left.
    """
    missing = 0
    known: dict[str, Path] = {}
    for paths, roots in ((run.paths, (run.root, tested.root)), (tested.paths, (tested.root,))):
        for path in paths.tolist():
            there = [file for root in roots if (file := root / path).is_file()]
            missing += not there
            known |= {same_file(file): file for file in there}
    files = [catalog.root / path for path in catalog.paths.tolist()]
    n, cached = len(files), cache_file(cache, files[0].parent, run.root, tested.root)
    groups = find_photographs([*files, *known.values()], cached, cores())
    copied = np.isin(groups[:n], groups[n:])
    if copied.all():
        raise UserError(
            f"unknown: all {n} images are copies of images that the model was trained, validated or tested on\n"
            "pass images of other things: unknown=DIR"
        )
    kept = ~copied
    names = photograph_names(catalog.paths.tolist(), groups[:n])
    rest = replace(
        catalog,
        paths=catalog.paths[kept],
        labels=catalog.labels[kept],
        photographs=names[kept],
        splits=np.full(int(kept.sum()), SPLIT),
    )
    return UnknownImages(rest, catalog.paths[copied].tolist(), missing)
