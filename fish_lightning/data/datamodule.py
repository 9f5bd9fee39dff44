"""``FishDataModule``: a source, a split and transforms made into the loaders that Lightning asks for."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import albumentations as A
import cv2
import lightning as L
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from fish_lightning import compat
from fish_lightning.data.cache import Pipelines, PixelCache, open_cache, split_pipelines
from fish_lightning.data.catalog import Catalog
from fish_lightning.data.dataset import REMEDY, UNREADABLE, FishDataset, KeyedBatches, start_worker
from fish_lightning.data.decoding import UnreadableImage
from fish_lightning.data.device_augment import DeviceAugment
from fish_lightning.data.near_duplicates.search import with_photographs
from fish_lightning.data.sources import CatalogSource, Source
from fish_lightning.data.splits import folders_split
from fish_lightning.errors import UserError
from fish_lightning.hardware import cores


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
        keep_split: keep the split that folders or a table say, where ``split`` is random or by photograph.
        photograph: regular expression that names an image's photograph: its first group, or all that it matches.
        find_copies: look which images are copies of one photograph, where nothing else says it.
        cache: where decoded images are kept: ``"on"`` (a file in ``cache_dir``), ``"ram"``, or ``"off"`` (nowhere).
        cache_dir: folder of the cache, also of what was found out about copies; None: keep nothing.
        resident: keep all decoded images on the device, which then augments them; batches travel as row numbers.
        on_error: ``"raise"`` or ``"skip"``: what an unreadable image does.
        test_subset: what is tested: ``"test"``, ``"val"``, ``"train"`` or ``"all"``.

    Attributes:
        catalog: the table, after :meth:`setup`.
    """

    catalog: Catalog

    def __init__(
        self,
        root: str | Path | None,
        source: Callable[[str | Path | None], Source] | None,
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
        keep_split: bool = True,
        photograph: str | None = None,
        find_copies: bool = False,
        cache: str | bool = "off",
        cache_dir: str | Path | None = None,
        resident: bool = False,
        on_error: str = "raise",
        test_subset: str = "test",
    ) -> None:
        super().__init__()
        if on_error not in ("raise", "skip"):
            raise UserError(f"data.on_error={on_error}: it is raise or skip")
        if catalog is not None:
            self.source: Source = CatalogSource(root, catalog)
        elif source is not None:
            self.source = source(root)
        else:
            raise UserError("data=checkpoint is for evaluate; to train choose data=sample, data=fish or data=folder")
        self.split, self.seed = split, seed
        self.train_transform, self.eval_transform = train_transform, eval_transform
        self.start = {"epoch": 0, "batches": 0}
        self.photograph, self.find_copies, self.keep_split = photograph, find_copies, keep_split
        self.cache = ("on" if cache else "off") if isinstance(cache, bool) else cache  # what YAML makes of on and off
        if self.cache not in ("on", "off", "ram"):
            raise UserError(f"data.cache={cache}: it is on, off or ram")
        self.cache_dir = None if cache_dir is None else Path(cache_dir).expanduser()
        self.resident = resident
        self.device_augment: DeviceAugment | None = None
        self.pipelines: Pipelines | None = None
        self.pixels: PixelCache | None = None
        self._on_device: Tensor | None = None
        self.on_error, self.test_subset = on_error, test_subset
        self.batch_size = batch_size
        self.loader: dict[str, Any] = {"num_workers": num_workers, "pin_memory": pin_memory}
        if num_workers:
            self.loader |= {
                "persistent_workers": persistent_workers,
                "prefetch_factor": prefetch_factor,
                "worker_init_fn": start_worker,
            }
        else:
            cv2.setNumThreads(0)

    def prepare_data(self) -> None:
        """Create or download what is missing."""
        self.source.prepare()

    def read_catalog(self) -> Catalog:
        """Read the catalog and split it, once. A split that the folders give is kept, unless ``split`` is a file."""
        if not hasattr(self, "catalog"):
            catalog = with_photographs(self.source.read(), self.photograph, self.find_copies, self.cache_dir)
            if self.keep_split and (catalog.splits != "").any() and self.split_name in ("random", "photograph"):
                self.split = folders_split
            self.catalog = catalog.with_splits(self.split(catalog, seed=self.seed))
        return self.catalog

    def setup(self, stage: str | None = None) -> None:
        """Read the catalog, and decode its images where they are cached; once."""
        self.read_catalog()
        if self.pixels is None and (self.cache != "off" or self.resident):
            self._decode_once()

    def _decode_once(self) -> None:
        """Open the cache of decoded images; it is made where it is missing."""
        self.pipelines = split_pipelines(self.train_transform, self.eval_transform)
        if self.pipelines is None:
            raise UserError(
                "data.cache: transforms.train and transforms.eval do not begin with the same resize, so that there is\n"
                "nothing to keep; begin both with one A.Resize, or decode each time: data.cache=off"
            )
        if self.resident:
            if self.cache == "off":
                raise UserError("augment=gpu keeps decoded images: it wants data.cache=on or data.cache=ram")
            if len(self.pipelines.evaluate.transforms) > 1:
                raise UserError("augment=gpu: transforms.eval may only resize; for what it does: augment=cpu")
            self.device_augment = DeviceAugment(self.pipelines.train.transforms)
        if self.cache == "on" and self.cache_dir is None:
            raise UserError("data.cache=on wants a folder, data.cache_dir")
        self.pixels = open_cache(
            self.catalog, self.pipelines, self.cache_dir or Path(), cores(), in_ram=self.cache == "ram"
        )
        bad = [row for row in sorted(self.pixels.errors) if self.catalog.splits[row] != ""]
        if bad and self.on_error == "raise":
            named = [self.pixels.errors[row] for row in bad[:3]]
            more = [f"and {len(bad) - 3} more"] if len(bad) > 3 else []
            raise UnreadableImage("\n".join([*named, *more, REMEDY]))

    @property
    def split_name(self) -> str:
        """The choice of ``conf/split``: ``random`` for :func:`fish_lightning.data.splits.random_split`, and so on."""
        function: Any = getattr(self.split, "func", self.split)  # what Hydra's partial holds
        return str(function.__name__).removesuffix("_split")

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint stores of the data: catalog, batch size and position, in plain containers."""
        epoch, batches = compat.next_batch(self.trainer) if self.trainer else (0, 0)
        return {
            "catalog": self.catalog.state(),
            "split": self.split_name,
            "seed": self.seed,
            "batch_size": self.batch_size,
            "processes": self.trainer.world_size if self.trainer else 1,
            "next": {"epoch": epoch, "batches": batches},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue after the last batch done.

        Lightning calls this before it asks for the optimizers, and so before any loader starts its workers.

        Raises:
            UserError: the run began with other images or another split.
        """
        if differences := self.differences(state_dict):
            raise UserError(f"ckpt: the run began with {'; '.join(differences)}")
        self.start = state_dict["next"]

    def differences(self, state_dict: dict[str, Any]) -> list[str]:
        """Return how the images and their split differ from those a run began with, in a few words each."""
        began, now = Catalog.from_state(state_dict["catalog"]), self.read_catalog()
        if began.classes == now.classes and all(
            np.array_equal(getattr(began, column), getattr(now, column)) for column in ("paths", "labels")
        ):
            changed = int((began.splits != now.splits).sum())
            return [f"another split ({changed} images were in another part; split.csv in its folder)"] * bool(changed)
        return [f"other images ({len(began)} in {len(began.classes)} classes, now {len(now)} in {len(now.classes)})"]

    def dataset(self, split: str, train: bool = False) -> FishDataset:
        """The images of one split ("all" for every image), augmented if they are to train on."""
        if self.pipelines is None:
            transform = self.train_transform if train else self.eval_transform
        else:
            transform = self.pipelines.train if train else self.pipelines.evaluate
        return FishDataset(
            self.catalog, self.catalog.indices(split), transform, self.seed, self.on_error, self.pixels, self.resident
        )

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Note what would otherwise be read from the device, and draw its augmentation from (seed, epoch, index)."""
        batch["complete"] = bool((batch["label"] != UNREADABLE).all())
        if self.device_augment is not None and self.trainer and self.trainer.training:
            batch["affine"] = self.device_augment.draw(self.seed, batch["epoch"], batch["index"])
        return batch

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Take the images from those that the device holds, and augment them there."""
        if self.resident:
            batch["image"] = self._resident_pixels(batch["index"].device)[batch["index"]].permute(0, 3, 1, 2)
        if "affine" in batch:
            assert self.device_augment is not None
            batch["image"] = self.device_augment(batch["image"], batch.pop("affine"))
        return batch

    def _resident_pixels(self, device: torch.device) -> Tensor:
        """(N, H, W, 3) uint8 on the device, copied to it once."""
        if self._on_device is None or self._on_device.device != device:
            assert self.pixels is not None
            pixels = self.pixels.pixels
            try:
                self._on_device = torch.empty(pixels.shape, dtype=torch.uint8, device=device)
                for start in range(0, len(pixels), 1024):  # all at once would take as much memory of the host
                    part = np.array(pixels[start : start + 1024])
                    self._on_device[start : start + 1024] = torch.from_numpy(part)
            except torch.OutOfMemoryError:
                size = f"{pixels.nbytes / 1e9:.1f} GB"
                raise UserError(
                    f"augment=gpu: the decoded images, {size}, do not fit on {device}\n"
                    "leave them to the loader: augment=cpu"
                ) from None
        return self._on_device

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
        place: dict[str, int] = {}
        if self.trainer:
            place |= {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size}
        if shuffle:
            place |= {"start_epoch": self.start["epoch"], "start_batch": self.start["batches"]}
        batches = KeyedBatches(len(dataset), self.batch_size, self.seed, shuffle, **place)
        return DataLoader(dataset, batch_sampler=batches, **self.loader)
