"""``FishDataModule``: the data loaders of a source, a split and transforms."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import albumentations as A
import cv2
import lightning as L
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from fish_lightning import compat
from fish_lightning.data import remote
from fish_lightning.data.backgrounds import Backgrounds, open_masks
from fish_lightning.data.cache import Pipelines, PixelCache, open_cache, split_pipelines
from fish_lightning.data.catalog import SPLITS, Catalog, without_class
from fish_lightning.data.dataset import REMEDY, UNREADABLE, FishDataset, KeyedBatches, start_worker
from fish_lightning.data.decoding import UnreadableImage
from fish_lightning.data.device_augment import DeviceAugment
from fish_lightning.data.near_duplicates.search import with_photographs
from fish_lightning.data.sources import CatalogSource, Source
from fish_lightning.data.splits import (
    folders_split,
    kfold_split,
    name_of_split,
    photograph_split,
    random_split,
    say_if_tracks_are_divided,
)
from fish_lightning.data.trained_sources import RecordedSource
from fish_lightning.errors import UserError
from fish_lightning.files import byte_size

#: Assigns a split to each image: ``split(catalog, seed=…)`` returns (N,) names.
Split = Callable[..., npt.NDArray[np.str_]]


class FishDataModule(L.LightningDataModule):
    """Data loaders for training, validation and test.

    Args:
        root: folder of the images, or its URL; None if the source does not require one.
        source: function that creates the source from ``root``: a class of :mod:`fish_lightning.data.sources`.
        split: function that assigns train, val and test, unless ``keep_split`` applies.
        train_transform: albumentations pipeline for training images.
        eval_transform: albumentations pipeline for validation, test and prediction images.
        seed: random seed of the split, the order of images and the augmentation.
        batch_size: number of images per process and step.
        num_workers: number of loader processes, 0 or more.
        pin_memory: whether to put batches into page-locked memory, for a GPU.
        persistent_workers: whether to keep the workers between epochs.
        prefetch_factor: number of batches prefetched by each worker.
        catalog: CSV table of the images, used instead of ``source``.
        keep_split: whether to keep a split defined by folders or a table, if ``split`` is random or by photograph.
        photograph: regular expression whose first group, or whole match, names the photograph of a path.
        find_copies: whether to search for near-duplicates, unless the photographs are known.
        balance: what a training epoch draws equally often: ``"class"`` or ``"photograph"`` (one of its copies each
            time); None: each image once. The number of images stays the same.
        leave_out: index or name of a class to leave out of training and test; its test images are ``left_out``.
        cache: where decoded images are kept: ``"on"`` (a file in ``cache_dir``), ``"ram"`` or ``"off"`` (nowhere).
        cache_dir: cache folder, also for the result of the near-duplicate search; None: that is not cached.
        backgrounds: fraction of the training images whose object is pasted onto another one's background, where masks
            are known; None: none.
        estimate_masks: whether to estimate which pixels show the object, for ``backgrounds``, if the data set has no
            masks.
        match_colors: whether a background gets the mean color of the one that it replaces, for ``backgrounds``.
        resident: whether to keep all decoded images on the device, which augments them; loaders send their indices.
        on_error: whether to ``"raise"`` an error for unreadable images or to ``"skip"`` them.
        test_subset: the images to test: ``"test"``, ``"val"``, ``"train"`` or ``"all"``.

    Attributes:
        catalog: all images, after :meth:`setup`.
        left_out: test images of the class ``leave_out``, after :meth:`setup`; None without one.
        left_out_class: name of that class.
        augments: whether training images are augmented; False while the network sees each of them only once.
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
        balance: str | None = None,
        leave_out: int | str | None = None,
        cache: str | bool = "off",
        cache_dir: str | Path | None = None,
        backgrounds: float | None = None,
        estimate_masks: bool = False,
        match_colors: bool = False,
        resident: bool = False,
        on_error: str = "raise",
        test_subset: str = "test",
    ) -> None:
        super().__init__()
        if on_error not in ("raise", "skip"):
            raise UserError(f"data.on_error={on_error}: expected raise or skip")
        self.cache_dir = None if cache_dir is None else Path(cache_dir).expanduser()
        self.remote = str(root) if remote.is_remote(str(root)) else None
        if self.remote is not None:
            root = remote.copy_of(self.remote, self.cache_dir)
        if catalog is not None:
            self.source: Source = CatalogSource(root, catalog)
        elif source is not None:
            self.source = source(root)
        else:
            raise UserError("data=checkpoint is for evaluate; to train, choose data=sample, data=fish or data=folder")
        self.split, self.seed = split, seed
        self.train_transform, self.eval_transform = train_transform, eval_transform
        self.augments = True
        self.start = {"epoch": 0, "batches": 0}
        self.photograph, self.find_copies, self.keep_split = photograph, find_copies, keep_split
        if balance not in (None, "class", "photograph"):
            raise UserError(f"data.balance={balance}: expected class, photograph or null")
        self.balance = balance
        self.leave_out = leave_out
        self.left_out: Catalog | None = None
        self.left_out_class: str | None = None
        self.cache = ("on" if cache else "off") if isinstance(cache, bool) else cache  # YAML's on and off
        if self.cache not in ("on", "off", "ram"):
            raise UserError(f"data.cache={cache}: expected on, off or ram")
        self.resident, self.backgrounds = resident, backgrounds
        self.estimate_masks, self.match_colors = estimate_masks, match_colors
        self._backgrounds: Backgrounds | None = None
        self.device_augment: DeviceAugment | None = None
        self.pipelines: Pipelines | None = None
        self.pixels: PixelCache | None = None
        self._on_device: Tensor | None = None
        self.on_error, self.test_subset = on_error, test_subset
        self.batch_size = batch_size
        self.loader: dict[str, Any] = {"num_workers": num_workers, "pin_memory": pin_memory}
        if num_workers:
            self.loader |= {"persistent_workers": persistent_workers, "prefetch_factor": prefetch_factor}
            self.loader["worker_init_fn"] = start_worker
        else:
            cv2.setNumThreads(0)

    def prepare_data(self) -> None:
        """Fetch, download or generate missing files."""
        if self.remote is not None:
            remote.fetch(self.remote, remote.copy_of(self.remote, self.cache_dir))
        self.source.prepare()

    def read_catalog(self) -> Catalog:
        """Read and split the catalog once; a split that the data set defines is kept if ``keep_split`` applies."""
        if not hasattr(self, "catalog"):
            catalog = with_photographs(self.source.read(), self.photograph, self.find_copies, self.cache_dir)
            if self.keep_split and (catalog.splits != "").any() and self._splits_by(random_split, photograph_split):
                self.split = folders_split
            catalog = catalog.with_splits(self.split(catalog, seed=self.seed))
            if self.leave_out is not None:  # after the split, which is that of all classes
                names = set(catalog.classes)
                catalog, self.left_out = without_class(catalog, self.leave_out)
                (self.left_out_class,) = names - set(catalog.classes)
            self.catalog = catalog
            self._files = self.catalog.file_states()
            if self.photograph is None and self._splits_by(random_split, photograph_split, kfold_split):
                say_if_tracks_are_divided(self.catalog, self.catalog.splits)
        return self.catalog

    def setup(self, stage: str | None = None) -> None:
        """Read the catalog and open the cache of its decoded images, once."""
        self.read_catalog()
        if self.pixels is None and (self.cache != "off" or self.resident):
            self._open_cache()
        if self.backgrounds and self._backgrounds is None:
            if self.resident or self.pixels is None or self.pipelines is None:
                raise UserError("transforms.backgrounds requires augment=cpu and data.cache=on or data.cache=ram")
            folder, in_ram = self.cache_dir or Path(), self.cache == "ram"
            masks, rows = open_masks(self.catalog, self.pipelines, folder, in_ram, self.estimate_masks)
            self._backgrounds = Backgrounds(self.pixels, masks, rows, self.seed, self.backgrounds, self.match_colors)

    def _open_cache(self) -> None:
        self.pipelines = split_pipelines(self.train_transform, self.eval_transform)
        if self.pipelines is None:
            raise UserError(
                "data.cache: transforms.train and transforms.eval do not begin with the same resize\n"
                "begin both with the same Resize, or use data.cache=off"
            )
        if self.resident:
            if self.cache == "off":
                raise UserError("augment=gpu requires data.cache=on or data.cache=ram")
            if len(self.pipelines.evaluate.transforms) > 1:
                raise UserError(
                    "augment=gpu requires transforms.eval to only resize; for other transforms use augment=cpu"
                )
            self.device_augment = DeviceAugment(self.pipelines.train.transforms)
        if self.cache == "on" and self.cache_dir is None:
            raise UserError("data.cache=on requires a folder: data.cache_dir=DIR")
        self.pixels = open_cache(self.catalog, self.pipelines, self.cache_dir or Path(), in_ram=self.cache == "ram")
        # Of the images of a training run those that are not tested need not exist.
        needed = [self.source.subset] if isinstance(self.source, RecordedSource) else list(SPLITS)
        bad = [i for i in sorted(self.pixels.errors) if self.catalog.splits[i] in needed or "all" in needed]
        if bad and self.on_error == "raise":
            more = [f"and {len(bad) - 3} more"] if len(bad) > 3 else []
            raise UnreadableImage("\n".join([*(self.pixels.errors[index] for index in bad[:3]), *more, REMEDY]))

    def _splits_by(self, *functions: Split) -> bool:
        """Return whether the split is drawn by one of these functions."""
        return getattr(self.split, "func", self.split) in functions

    @property
    def split_name(self) -> str:
        """Name of the choice in ``conf/split``: ``random`` for :func:`fish_lightning.data.splits.random_split`."""
        return name_of_split(self.split)

    def state_dict(self) -> dict[str, Any]:
        """Return catalog, settings and position for a checkpoint, as plain containers."""
        epoch, batches = compat.next_batch(self.trainer) if self.trainer else (0, 0)
        return {
            "catalog": self.catalog.state(),
            "files": torch.from_numpy(self._files),
            "split": self.split_name,
            "next": {"epoch": epoch, "batches": batches},
            "seed": self.seed,
            "batch_size": self.batch_size,
            "processes": self._processes(),
        }

    def _processes(self) -> int:
        return self.trainer.world_size if self.trainer else 1

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue after the last trained batch.

        Lightning calls this before it configures the optimizers, and so before any loader starts its workers. In
        ``train`` :mod:`fish_lightning.resume.compatibility` has decided before that the run can be resumed; the check
        is repeated here for a ``Trainer`` that a user's own code resumes.

        Raises:
            UserError: the run was started with other images, another split or other batches.
        """
        if differences := self.differences(state_dict, self._processes()):
            raise UserError(f"ckpt: the run was started with {'; '.join(differences)}")
        self.start = state_dict["next"]

    def differences(self, state_dict: dict[str, Any], processes: int) -> list[str]:
        """Describe, in a few words each, how the batches, images or split differ from those that a run began with.

        Args:
            state_dict: state of that run's data module.
            processes: number of processes of the resumed run.
        """
        batches = {
            "seed": (state_dict["seed"], self.seed),
            "data.batch_size": (state_dict["batch_size"], self.batch_size),
            "trainer.devices": (state_dict["processes"], processes),
        }
        found = [f"{key}={then}, not {now}" for key, (then, now) in batches.items() if then != now]
        began, now = Catalog.from_state(state_dict["catalog"]), self.read_catalog()
        if began.classes != now.classes or not all(
            np.array_equal(getattr(began, column), getattr(now, column)) for column in ("paths", "labels")
        ):
            sizes = f"{len(began)} in {len(began.classes)} classes, now {len(now)} in {len(now.classes)}"
            return [*found, f"other images ({sizes})"]
        if self.balance == "photograph" and not np.array_equal(began.photograph_numbers, now.photograph_numbers):
            found.append("other photographs (data.photograph, data.find_copies), which balance=photograph samples")
        changed = int((began.splits != now.splits).sum())
        return found + [f"another split ({changed} images differ; see split.csv in its folder)"] * bool(changed)

    def changed_images(self, state_dict: dict[str, Any], subset: str = "all") -> tuple[list[str], list[str]]:
        """Return the images whose file size has changed since a run began, and those whose files were only rewritten.

        Files are not read. Both lists are empty for a checkpoint without this information, and the second one is empty
        if all modification times differ, as after the data set was copied.

        Args:
            state_dict: state of that run's data module, with the same images.
            subset: images to compare: train, val, test or all.
        """
        self.read_catalog()
        if "files" not in state_dict:
            return [], []
        compared = self.catalog.indices(subset)
        sized, written = (state_dict["files"].numpy()[compared] != self._files[compared]).T
        paths = self.catalog.paths[compared]
        return paths[sized].tolist(), [] if written.all() else paths[written & ~sized].tolist()

    def dataset(self, split: str, train: bool = False) -> FishDataset:
        """Return the images of one split (``"all"`` for every image), augmented for training."""
        train, parts = train and self.augments, self.pipelines
        if parts is None:
            transform = self.train_transform if train else self.eval_transform
        else:
            transform = parts.train if train else parts.evaluate
        indices, backgrounds = self.catalog.indices(split), self._backgrounds if train else None
        return FishDataset(
            self.catalog, indices, transform, self.seed, self.on_error, self.pixels, self.resident, backgrounds
        )

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Draw the augmentation, and check for unreadable images before that requires waiting for the device."""
        batch["complete"] = bool((batch["label"] != UNREADABLE).all())
        if self.device_augment is not None and self.augments and self.trainer and self.trainer.training:
            batch["affine"] = self.device_augment.draw(self.seed, batch["epoch"], batch["index"])
        return batch

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Look up and augment images on the device, if they are resident."""
        if self.resident:
            batch["image"] = self._resident_pixels(batch["index"].device)[batch["index"]].permute(0, 3, 1, 2)
        if "affine" in batch:
            assert self.device_augment is not None
            batch["image"] = self.device_augment(batch["image"], batch.pop("affine"))
        return batch

    def class_weights(self) -> list[float]:
        """Return class weights, inversely proportional to the training image counts; their mean over images is 1."""
        counts = np.bincount(self.catalog.labels[self.catalog.indices("train")], minlength=len(self.catalog.classes))
        return list((counts.sum() / (len(counts) * counts.clip(1))).tolist())

    def _groups(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64] | None:
        """Return the (N,) class or photograph of these images, whichever ``balance`` names; None without it."""
        if self.balance is None:
            return None
        if self.balance == "class":
            return self.catalog.labels[indices]
        if not self.catalog.photographs_known:
            raise UserError(
                "balance=photograph: it is not known which images are copies of one photograph\n"
                "search for them with data.find_copies=true, or name them with data.photograph=REGEX"
            )
        return self.catalog.photograph_numbers[indices]

    def _resident_pixels(self, device: torch.device) -> Tensor:
        """Return the (N, H, W, 3) uint8 pixels on the device, copied to it once."""
        if self._on_device is None or self._on_device.device != device:
            assert self.pixels is not None
            pixels = self.pixels.pixels
            try:
                self._on_device = torch.empty(pixels.shape, dtype=torch.uint8, device=device)
                for start in range(0, len(pixels), 1024):  # in parts, to save host memory
                    part = np.array(pixels[start : start + 1024])
                    self._on_device[start : start + 1024] = torch.from_numpy(part)
            except torch.OutOfMemoryError:
                size = byte_size(pixels.nbytes)
                raise UserError(
                    f"augment=gpu: the decoded images ({size}) do not fit on {device}\nuse augment=cpu"
                ) from None
        return self._on_device

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the training loader, shuffled by (seed, epoch); a resumed run starts at the next batch."""
        return self._loader("train", shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """Return the validation loader, in catalog order."""
        return self._loader("val")

    def test_dataloader(self) -> DataLoader[Any]:
        """Return the loader of ``test_subset``, in catalog order."""
        return self._loader(self.test_subset)

    predict_dataloader = val_dataloader  # thresholds are chosen on the predictions of the validation images

    def _loader(self, split: str, shuffle: bool = False) -> DataLoader[Any]:
        dataset = self.dataset(split, train=shuffle)
        place: dict[str, Any] = {}
        if self.trainer:
            place |= {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size}
        if shuffle:
            place |= {"start_epoch": self.start["epoch"], "start_batch": self.start["batches"]}
            place["groups"] = self._groups(dataset.indices)
        batches = KeyedBatches(len(dataset), self.batch_size, self.seed, shuffle, **place)
        return DataLoader(dataset, batch_sampler=batches, **self.loader)
