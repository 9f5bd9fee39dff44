"""Images for evaluating a trained model: of its training run, of another data set, or of none of the classes."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from omegaconf import DictConfig

from fish_lightning.data.catalog import Catalog
from fish_lightning.data.listing import require_folder, same_file
from fish_lightning.data.near_duplicates.search import search
from fish_lightning.data.sources import CatalogSource, Source
from fish_lightning.errors import UserError
from fish_lightning.names import listed

MakeSource = Callable[[str | Path | None], Source]
#: Split of images of none of the classes, which are in no split of the run.
UNKNOWN = "unknown"


def evaluation_source(
    cfg: DictConfig, other: MakeSource | None, state: dict[str, Any], subset: str = "all"
) -> MakeSource:
    """Return a factory that creates the source of an evaluation from ``data.root``.

    Args:
        cfg: the ``data`` group.
        other: factory of another data set's source; None for the images of the training run.
        state: catalog of the training run, as :meth:`Catalog.state` returns it.
        subset: images of the training run that are tested; others need not exist.
    """
    if cfg.catalog is not None:
        other = partial(CatalogSource, catalog=cfg.catalog)
    if other is None:
        return partial(RecordedSource, state=state, subset=subset)
    settings = {"find_copies": cfg.find_copies, "keep_split": cfg.keep_split, "cache": cfg.cache_dir}
    return partial(OtherSource, source=other, state=state, **settings)


class RecordedSource(Source):
    """The catalog stored in a checkpoint.

    Args:
        root: current folder of the images; None: the folder they were in.
        state: catalog of the training run, as :meth:`Catalog.state` returns it.
        subset: images that must exist.
    """

    def __init__(self, root: str | Path | None, state: dict[str, Any], subset: str = "all") -> None:
        self.subset = subset
        self.state = state | ({"root": str(root)} if root is not None else {})

    def read(self) -> Catalog:
        """Return the catalog of the training run.

        Raises:
            UserError: the folder or the first of the required images is missing.
        """
        catalog = Catalog.from_state(self.state)
        require_folder(catalog.root)
        first = next(iter(catalog.paths[catalog.indices(self.subset)].tolist()), None)
        if first is not None and not (catalog.root / first).is_file():
            raise UserError(
                f"{catalog.root} does not contain the images this checkpoint was trained on "
                f"(no {first})\npass the folder they are in now: data.root=DIR"
            )
        return catalog


class OtherSource:
    """Another data set, with the model's labels and without leaks from its training data.

    Training images and their copies are ``train``; they are matched by path if they are images of the training run,
    else by near-duplicate search. The others keep the split of the data set; without one they are ``test``.

    Args:
        root: folder of the data set.
        source: factory of its source.
        state: catalog of the training run, as :meth:`Catalog.state` returns it.
        find_copies: whether to search for near-duplicates of training images; False: only paths are compared.
        keep_split: whether to keep the split of the data set; False: every image that was not trained on is tested.
        cache: folder for the result of the search; None: the result is not cached.

    Attributes:
        trained: (N,) mask of the images that are copies of training images, after :meth:`read`; None if unknown.
        missing: number of training images that no longer exist and could not be compared.
    """

    def __init__(
        self,
        root: str | Path | None,
        source: MakeSource,
        state: dict[str, Any],
        find_copies: bool = False,
        keep_split: bool = True,
        cache: str | Path | None = None,
    ) -> None:
        self.source = source(root)
        self.known = Catalog.from_state(state)
        self.find_copies, self.keep_split, self.cache = find_copies, keep_split, cache
        self.trained: npt.NDArray[np.bool_] | None = None
        self.missing = 0

    def prepare(self) -> None:
        """Download or generate missing files."""
        self.source.prepare()

    def read(self) -> Catalog:
        """Return the catalog with the model's classes.

        Raises:
            UserError: the data set has a class that the model does not know.
        """
        catalog = self.source.read()
        unknown = sorted(set(catalog.classes) - set(self.known.classes))
        if unknown:
            raise UserError(
                f"{catalog.root} has classes that the checkpoint does not know: {listed(unknown)}\n"
                f"it knows: {listed(self.known.classes)}"
            )
        number = np.array([self.known.classes.index(name) for name in catalog.classes])
        catalog = replace(catalog, labels=number[catalog.labels], classes=self.known.classes)
        # The originals lie below the folder that was trained on, but are other images.
        same = catalog.root.resolve() == self.known.root.resolve() and np.isin(catalog.paths, self.known.paths).all()
        return self._compared(catalog) if self.find_copies and not same else self._looked_up(catalog)

    def _looked_up(self, catalog: Catalog) -> Catalog:
        """Take split and photograph from the training run for images with the same path."""
        known = {path: index for index, path in enumerate(self.known.paths.tolist())}
        indices = np.array([known.get(path, -1) for path in catalog.paths.tolist()])
        return replace(
            catalog,
            splits=np.where(indices >= 0, self.known.splits[indices], self._own_splits(catalog)),
            photographs=np.where(indices >= 0, self.known.photographs[indices], catalog.photographs),
        )

    def _compared(self, catalog: Catalog) -> Catalog:
        """Take split and photograph from a near-duplicate search among these and the training images."""
        trained = self.known.take(self.known.splits == "train")
        there = np.array([file.is_file() for file in trained.files], dtype=bool)
        others = trained.take(there)
        files = dict(zip(others.paths.tolist(), others.files, strict=True))
        names, copied = search(catalog, files, self.cache, [catalog.root, self.known.root])
        moved = np.isin(catalog.paths, trained.paths[~there])  # missing there, here under the same name
        self.missing = int((~there).sum() - moved.sum())
        if there.any() or moved.any():
            self.trained = moved | copied
        rest = self._own_splits(catalog)
        return replace(
            catalog,
            splits=rest if self.trained is None else np.where(self.trained, "train", rest),
            photographs=np.where(catalog.photographs == "", names, catalog.photographs),
        )

    def _own_splits(self, catalog: Catalog) -> npt.NDArray[np.str_]:
        """Return the data set's own split, its training images excluded; all ``test`` if it has none."""
        if not self.keep_split or not (catalog.splits != "").any():
            return np.full(len(catalog), "test", dtype="<U5")
        return np.where(catalog.splits == "train", "", catalog.splits).astype("<U5")


@dataclass(frozen=True)
class UnknownImages:
    """Images of none of the classes.

    Attributes:
        catalog: the remaining images, with their photographs.
        copies: paths of the images left out, copies of an image that the model was trained, validated or tested on.
        missing: number of images of the run that no longer exist, so that copies of them cannot be found.
    """

    catalog: Catalog
    copies: list[str]
    missing: int


def without_copies(catalog: Catalog, run: Catalog, tested: Catalog, cache: Path | None) -> UnknownImages:
    """Leave out the images that are copies of known ones, by a near-duplicate search.

    Args:
        catalog: catalog of all images that are said to be of none of the classes.
        run: catalog of the training run's images, of any split.
        tested: catalog of the evaluation's images, which may be the same ones or in another folder.
        cache: folder for the result of the search; None: the result is not cached.

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
    names, copied = search(catalog, known, cache, [catalog.files[0].parent, run.root, tested.root])
    if copied.all():
        raise UserError(
            f"unknown: all {len(catalog)} images are copies of images that the model was trained, validated or tested "
            "on\npass images of other things: unknown=DIR"
        )
    kept = replace(catalog, photographs=names, splits=np.full(len(catalog), UNKNOWN)).take(~copied)
    return UnknownImages(kept, catalog.paths[copied].tolist(), missing)
