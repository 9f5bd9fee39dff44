"""``FishDataModule``: a source, a split and transforms made into the loaders that Lightning asks for."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import albumentations as A
import cv2
import lightning as L
import numpy as np
import numpy.typing as npt
from torch.utils.data import DataLoader

from fish_lightning.data.catalog import Catalog
from fish_lightning.data.dataset import FishDataset, KeyedSampler, start_worker
from fish_lightning.data.photographs import with_photographs
from fish_lightning.data.sources import CatalogSource, Source
from fish_lightning.data.splits import folder_split
from fish_lightning.errors import UserError


class Split(Protocol):
    """Assigns a split to every image of a catalog."""

    def __call__(self, catalog: Catalog, seed: int) -> npt.NDArray[np.str_]:
        """(N,) names of splits."""


class FishDataModule(L.LightningDataModule):
    """Loaders for training, validation and test.

    Args:
        root: folder of the images; None where the source can do without.
        source: makes of ``root`` what finds images and labels in it: a class of :mod:`fish_lightning.data.sources`.
        split: assigns train, val and test. A source whose folders say the split already keeps it.
        train_transform: albumentations pipeline for training images.
        eval_transform: the same for validation, test and prediction.
        seed: of split, order and augmentation.
        batch_size: images a process takes a step.
        num_workers: loader processes, 0 or more.
        pin_memory: page-locked batches, for a GPU.
        persistent_workers: keep the workers between epochs.
        prefetch_factor: batches each worker keeps ready.
        catalog: CSV file that names the images, in place of ``source``.
        photograph: regular expression that names an image's photograph: its first group, or all that it matches.
        find_copies: look which images are copies of one photograph, where nothing else says it.
        cache: folder to keep that in; None: keep nothing.
        on_error: ``"raise"`` or ``"skip"``: what an unreadable image does.
        test_subset: what is tested: ``"test"``, ``"val"``, ``"train"`` or ``"all"``.

    Attributes:
        catalog: the table, after :meth:`setup`.
    """

    catalog: Catalog

    def __init__(
        self,
        root: str | Path | None,
        source: Callable[[str | Path | None], Source],
        split: Split,
        train_transform: A.Compose,
        eval_transform: A.Compose,
        seed: int = 42,
        batch_size: int = 128,
        num_workers: int = 0,
        pin_memory: bool = False,
        persistent_workers: bool = True,
        prefetch_factor: int = 2,
        catalog: str | Path | None = None,
        photograph: str | None = None,
        find_copies: bool = False,
        cache: str | Path | None = None,
        on_error: str = "raise",
        test_subset: str = "test",
    ) -> None:
        super().__init__()
        if on_error not in ("raise", "skip"):
            raise UserError(f"data.on_error={on_error}: it is raise or skip")
        self.source = source(root) if catalog is None else CatalogSource(root, catalog)
        self.split, self.seed = split, seed
        self.train_transform, self.eval_transform = train_transform, eval_transform
        self.start = {"epoch": 0, "batches": 0}
        self.photograph, self.find_copies, self.cache = photograph, find_copies, cache
        self.on_error, self.test_subset = on_error, test_subset
        self.loader: dict[str, Any] = {"batch_size": batch_size, "num_workers": num_workers, "pin_memory": pin_memory}
        if num_workers:
            self.loader |= {
                "persistent_workers": persistent_workers,
                "prefetch_factor": prefetch_factor,
                "worker_init_fn": start_worker,
            }
        else:
            cv2.setNumThreads(0)

    def prepare_data(self) -> None:
        """Make or fetch what is missing."""
        self.source.prepare()

    def setup(self, stage: str | None = None) -> None:
        """Read the catalog and split it, once. A split that the folders say is kept, unless a file says another."""
        if not hasattr(self, "catalog"):
            catalog = with_photographs(self.source.read(), self.photograph, self.find_copies, self.cache)
            if (catalog.splits != "").any() and self.split_name in ("random", "photograph"):
                self.split = folder_split
            self.catalog = catalog.with_splits(self.split(catalog, seed=self.seed))

    @property
    def split_name(self) -> str:
        """``random`` for :func:`fish_lightning.data.splits.random_split`, and so on."""
        function: Any = getattr(self.split, "func", self.split)  # what Hydra's partial holds
        return str(function.__name__).removesuffix("_split")

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint carries of the data: the catalog and the batch size, in plain containers."""
        return {
            "catalog": self.catalog.state(),
            "split": self.split_name,
            "seed": self.seed,
            "batch_size": self.loader["batch_size"],
            "next": self._next_batch(),
        }

    def _next_batch(self) -> dict[str, int]:
        """Where a run that is saved now would go on: epoch (0-based) and batches of it that are done."""
        if self.trainer is None:
            return {"epoch": 0, "batches": 0}
        progress: Any = self.trainer.fit_loop.epoch_loop.batch_progress.current
        epoch, done = self.trainer.current_epoch, progress.processed
        if done >= self.trainer.num_training_batches:
            epoch, done = epoch + 1, 0
        return {"epoch": epoch, "batches": done}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on after the last batch done, with the images and the split that the run began with.

        Lightning calls this before it asks for the optimizers, and so before any loader starts its workers.

        Raises:
            UserError: files, labels or split are others now.
        """
        begun = Catalog.from_state(state_dict["catalog"])
        same = begun.classes == self.catalog.classes and all(
            np.array_equal(getattr(begun, column), getattr(self.catalog, column))
            for column in ("paths", "labels", "splits")
        )
        if not same:
            raise UserError(
                f"ckpt: the run began with other images or another split ({len(begun)} images then, "
                f"{len(self.catalog)} now)\n"
                "resume with the same data and split, or replay its split: split=file split.path=RUN/split.csv"
            )
        self.start = state_dict["next"]

    def dataset(self, split: str, train: bool = False) -> FishDataset:
        """The images of one split ("all" for every image), augmented if they are to train on."""
        transform = self.train_transform if train else self.eval_transform
        return FishDataset(self.catalog, self.catalog.indices(split), transform, self.seed, self.on_error)

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled by (seed, epoch); after a resume it starts at the batch that comes next."""
        return self._loader("train", shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """In catalog order, each image once."""
        return self._loader("val")

    def test_dataloader(self) -> DataLoader[Any]:
        """In catalog order, each image once."""
        return self._loader(self.test_subset)

    def _loader(self, split: str, shuffle: bool = False) -> DataLoader[Any]:
        dataset = self.dataset(split, train=shuffle)
        world = {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size} if self.trainer else {}
        if shuffle:
            world |= {
                "start_epoch": self.start["epoch"],
                "start_index": self.start["batches"] * self.loader["batch_size"],
            }
        sampler = KeyedSampler(len(dataset), self.seed, shuffle, **world)
        return DataLoader(dataset, sampler=sampler, **self.loader)
