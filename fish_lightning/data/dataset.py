"""One image from file to tensor, and the order in which images come.

``FishDataset[(epoch, index)]`` takes the decoded image (from the cache, or with Pillow), seeds the albumentations
pipeline with (seed, epoch, row) and applies it. Without the seeding, a ``Compose`` made in the parent gives the same
augmentations in every worker and epoch (albumentations issue 2473); with it, what happens to an image does not depend
on the number of workers.
"""

import math
import random
import signal
from collections.abc import Iterator
from typing import Any

import albumentations as A
import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset, Sampler

from fish_lightning.data.cache import PixelCache
from fish_lightning.data.catalog import Catalog
from fish_lightning.data.decoding import UnreadableImage, decode
from fish_lightning.errors import UserError

#: Label of an image that could not be read; the module leaves such rows out of loss and metrics.
UNREADABLE = -1
#: What to do about one.
MEND = "mend or remove it, or leave it out with data.on_error=skip"
#: Seconds that a loader worker lives on after SIGTERM.
GRACE = 20


class FishDataset(Dataset[dict[str, Any]]):
    """Images of some rows of a catalog.

    Args:
        catalog: the whole table.
        rows: (N,) row numbers of this split.
        transform: albumentations pipeline ending in ``ToTensorV2``.
        seed: first part of the augmentation key.
        on_error: ``"raise"`` names an unreadable image and stops; ``"skip"`` marks it ``UNREADABLE``.
        cache: the images decoded, ``transform`` being what comes after; None: files are decoded.
        resident: leave the pixels to the device, which holds them all: items have ``epoch`` instead of ``image``.
    """

    def __init__(
        self,
        catalog: Catalog,
        rows: npt.NDArray[np.int64],
        transform: A.Compose,
        seed: int,
        on_error: str = "raise",
        cache: PixelCache | None = None,
        resident: bool = False,
    ) -> None:
        self.catalog = catalog
        self.rows = rows
        self.transform = transform
        self.seed = seed
        self.on_error = on_error
        self.cache = cache
        self.resident = resident
        self.randomness = KeyedRandomness()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        """The image of position ``index`` as it looks in epoch ``epoch``.

        Args:
            key: (epoch, index), index from 0 to N - 1.

        Returns:
            ``image`` (3, H, W) uint8, ``label`` int, ``row`` int (row number in the catalog).

        Raises:
            UnreadableImage: the file cannot be read and ``on_error`` is ``"raise"``.
        """
        epoch, index = key
        row = int(self.rows[index])
        label = int(self.catalog.labels[row])
        if self.resident:
            unreadable = self.cache is not None and row in self.cache.errors
            return {"label": UNREADABLE if unreadable else label, "row": row, "epoch": epoch}
        try:
            pixels = self._decoded(row)
        except UnreadableImage as error:
            if self.on_error == "raise":
                raise UnreadableImage(f"{error}\n{MEND}") from None
            pixels, label = np.zeros((32, 32, 3), np.uint8) if self.cache is None else self.cache.black(), UNREADABLE
        self.randomness.key(self.transform, keyed_seed(self.seed, epoch, row))
        return {"image": self.transform(image=pixels)["image"], "label": label, "row": row}

    def _decoded(self, row: int) -> npt.NDArray[np.uint8]:
        if self.cache is not None:
            return self.cache[row]
        return decode(self.catalog.root / str(self.catalog.paths[row]))


class KeyedRandomness:
    """The random numbers of a pipeline, begun anew for each image.

    ``Compose.set_random_seed`` gives every transform the same seed, so that what they draw is the same too: of two
    flips with probability 0.5 both happen or neither. Here all transforms draw from one pair of generators, and
    beginning those anew costs a tenth (``scripts/benchmark.py`` measures both).
    """

    def __init__(self) -> None:
        self.numpy = np.random.Generator(np.random.PCG64(0))
        self.python = random.Random(0)  # noqa: S311 - albumentations draws from this kind

    def key(self, transform: A.Compose, seed: int) -> None:
        """Make the next call of ``transform`` depend on ``seed`` alone.

        Args:
            transform: the pipeline.
            seed: 64 bits, well mixed (:func:`keyed_seed`).
        """
        self.python.seed(seed)
        self.numpy.bit_generator.state = {
            "bit_generator": "PCG64",
            "state": {"state": seed * 0x9E3779B97F4A7C15, "inc": 2 * seed + 1},  # 128 bits, and an odd number
            "has_uint32": 0,
            "uinteger": 0,
        }
        transform.set_random_state(self.numpy, self.python)


class KeyedBatches(Sampler[list[tuple[int, int]]]):
    """Yields batches of (epoch, index); the order of an epoch is a permutation drawn from (seed, epoch) alone.

    Its whole state is where it starts, so that a run goes on at the batch after the last one done, whatever loader
    workers had fetched ahead (Lightning issues 19764 and 20550). Lightning calls :meth:`set_epoch`.

    Several processes share each step's ``batch_size * world_size`` images: each takes every ``world_size``-th, so that
    a step sees the images that one process with a batch as large would. An epoch's last step shares what is left, of
    which a process may have one less; where fewer images are left than processes, they go with the step before.

    Args:
        n: number of images.
        batch_size: images a process and step.
        seed: first part of the key.
        shuffle: a fixed order 0 … n - 1 if False; a process may then have a batch less than another.
        rank: of this process, 0 to ``world_size - 1``.
        world_size: number of processes.
        start_epoch: the first epoch to come, 0-based.
        start_batch: how many of this rank's batches that epoch has had already.

    Raises:
        UserError: fewer images to train on than processes.
    """

    def __init__(
        self,
        n: int,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = False,
        rank: int = 0,
        world_size: int = 1,
        start_epoch: int = 0,
        start_batch: int = 0,
    ) -> None:
        if shuffle and n < world_size:
            raise UserError(f"{n} images to train on for {world_size} processes; set trainer.devices to {n} at most")
        self.n, self.batch_size, self.seed, self.shuffle = n, batch_size, seed, shuffle
        self.rank, self.world_size = rank, world_size
        self.epoch = self.start_epoch = start_epoch
        self.start_batch = start_batch
        self.sampler = self  # where Lightning looks for set_epoch

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch (0-based) of the next iteration."""
        self.epoch = epoch

    def __len__(self) -> int:
        if not self.shuffle:
            return math.ceil(len(range(self.rank, self.n, self.world_size)) / self.batch_size)
        full, left = divmod(self.n, self.batch_size * self.world_size)
        return max(1, full + (left >= self.world_size))

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = (
            np.random.default_rng([self.seed, self.epoch]).permutation(self.n) if self.shuffle else np.arange(self.n)
        )
        step, last = self.batch_size * self.world_size, len(self) - 1
        for batch in range(self.start_batch if self.epoch == self.start_epoch else 0, last + 1):
            images = order[batch * step : None if batch == last else (batch + 1) * step]
            yield [(self.epoch, int(index)) for index in images[self.rank :: self.world_size]]


def keyed_seed(seed: int, epoch: int, row: int) -> int:
    """A 64-bit seed from (seed, epoch, row), mixed so that neighbours share nothing.

    Source: the mixing function splitmix64 (Steele, Lea and Flood, OOPSLA 2014); numpy's ``SeedSequence`` costs ten
    times as much an image.
    """
    mask = (1 << 64) - 1
    x = 0
    for part in (seed, epoch, row):
        x = (x + part + 0x9E3779B97F4A7C15) & mask
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
        x ^= x >> 31
    return x


def start_worker(worker_id: int) -> None:
    """Keep OpenCV's and torch's threads from fighting the other workers for the cores; leave signals to the parent.

    A terminal sends Ctrl-C to the workers too, a cluster SIGTERM; they would inherit the handler that saves the run.
    The main process wants one more batch to stop in good order, and ends its workers then; after ``GRACE`` a worker
    that was told to end does so by itself.
    """
    del worker_id
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE))
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
