"""One image from file to tensor, and the order of images in an epoch.

``FishDataset[(epoch, position)]`` reads the decoded image (from the cache or its file), seeds the albumentations
pipeline with (seed, epoch, index) and applies it. Without the seeding, a ``Compose`` created in the parent repeats the
same augmentations in every worker and epoch (albumentations issue 2473); with it, augmentation does not depend on the
number of workers.
"""

import math
import os
import random
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import albumentations as A
import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset, Sampler

from fish_lightning.data.backgrounds import Backgrounds
from fish_lightning.data.cache import PixelCache
from fish_lightning.data.catalog import Catalog
from fish_lightning.data.decoding import UnreadableImage, decode
from fish_lightning.data.keys import GOLDEN, keyed_seed
from fish_lightning.errors import UserError

#: Label of an unreadable image; the classifier excludes it from loss and metrics.
UNREADABLE = -1
REMEDY = "repair or remove it, or skip unreadable images with data.on_error=skip"
#: Seconds until a loader worker ends after SIGTERM.
GRACE = 20


@dataclass(eq=False, repr=False)
class FishDataset(Dataset[dict[str, Any]]):
    """Images at some indices of a catalog.

    Args:
        catalog: catalog of all images.
        indices: (N,) indices of this split in the catalog.
        transform: albumentations pipeline ending in ``ToTensorV2``.
        seed: first part of the augmentation key.
        on_error: ``"raise"`` reports an unreadable image and stops; ``"skip"`` labels it ``UNREADABLE``.
        cache: cache of decoded images, with ``transform`` being the rest of the pipeline; None: files are decoded.
        resident: whether all pixels are on the device; items then have ``epoch`` instead of ``image``.
        backgrounds: callable that replaces the backgrounds of images, before ``transform``; None: images keep theirs.
    """

    catalog: Catalog
    indices: npt.NDArray[np.int64]
    transform: A.Compose
    seed: int
    on_error: str = "raise"
    cache: PixelCache | None = None
    resident: bool = False
    backgrounds: Backgrounds | None = None

    def __post_init__(self) -> None:
        self.randomness = KeyedRandomness()

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        """Return an image as augmented in an epoch.

        Args:
            key: epoch, and position in this split from 0 to N - 1.

        Returns:
            ``image`` (3, H, W) uint8, ``label`` int, ``index`` int (in the catalog).

        Raises:
            UnreadableImage: the file cannot be read and ``on_error`` is ``"raise"``.
        """
        epoch, position = key
        index = int(self.indices[position])
        label = int(self.catalog.labels[index])
        if self.resident:
            unreadable = self.cache is not None and index in self.cache.errors
            return {"label": UNREADABLE if unreadable else label, "index": index, "epoch": epoch}
        try:
            if self.cache is not None:
                pixels = self.cache[index]
            else:
                pixels = decode(self.catalog.root / str(self.catalog.paths[index]))
        except UnreadableImage as error:
            if self.on_error == "raise":
                raise UnreadableImage(f"{error}\n{REMEDY}") from None
            shape = (32, 32, 3) if self.cache is None else self.cache.pixels.shape[1:]
            pixels, label = np.zeros(shape, np.uint8), UNREADABLE
        if self.backgrounds is not None and label != UNREADABLE:
            pixels = self.backgrounds(pixels, epoch, index)
        self.randomness.key(self.transform, keyed_seed(self.seed, epoch, index))
        return {"image": self.transform(image=pixels)["image"], "label": label, "index": index}


class KeyedRandomness:
    """The random generators of a pipeline, reseeded for each image.

    ``Compose.set_random_seed`` gives every transform the same seed and so the same draws: of two flips with probability
    0.5, both happen or neither. Here all transforms share one pair of generators, and reseeding those takes a tenth of
    the time (``scripts/benchmark.py`` measures both).
    """

    def __init__(self) -> None:
        self.numpy = np.random.Generator(np.random.PCG64(0))
        self.python = random.Random(0)  # noqa: S311 - the type that albumentations requires

    def key(self, transform: A.Compose, seed: int) -> None:
        """Make the next call of a pipeline depend on ``seed`` alone: 64 bits, well mixed (:func:`keyed_seed`)."""
        self.python.seed(seed)
        self.numpy.bit_generator.state = {
            "bit_generator": "PCG64",
            "state": {"state": seed * GOLDEN, "inc": 2 * seed + 1},  # 128 bits, and an odd number
            "has_uint32": 0,
            "uinteger": 0,
        }
        transform.set_random_state(self.numpy, self.python)


@dataclass(eq=False, repr=False)
class KeyedBatches(Sampler[list[tuple[int, int]]]):
    """Yields batches of (epoch, position), each epoch in a permutation drawn from (seed, epoch).

    It has no state but its start, so a resumed run continues after the last trained batch, however many the workers had
    prefetched (Lightning issues 19764 and 20550). Lightning calls :meth:`set_epoch`.

    Of the ``batch_size * world_size`` images of a step, each process takes every ``world_size``-th, so a step sees the
    images that a single process with that batch size would. The last step of an epoch shares the remaining images; if
    there are fewer than two of them for each process, they join the previous step: batch normalization cannot train on
    a batch of one small image.

    Args:
        n: number of images.
        batch_size: number of images per process and step.
        seed: first part of the key.
        shuffle: whether to shuffle; False: order 0 … n - 1, and a process may have one batch less than another.
        rank: rank of this process, 0 to ``world_size - 1``.
        world_size: number of processes.
        start_epoch: the first epoch, 0-based.
        start_batch: number of batches of that epoch to skip, on this rank.
        groups: (n,) group of each image, integers: an epoch draws all groups equally often instead of each image once
            (:func:`balanced_order`); requires ``shuffle``.

    Raises:
        UserError: there are fewer training images than processes.
    """

    n: int
    batch_size: int
    seed: int = 0
    shuffle: bool = False
    rank: int = 0
    world_size: int = 1
    start_epoch: int = 0
    start_batch: int = 0
    groups: npt.NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        if self.shuffle and self.n < self.world_size:
            raise UserError(
                f"{self.n} training images for {self.world_size} processes: set trainer.devices to {self.n} or fewer"
            )
        self.epoch = self.start_epoch
        self.sampler = self  # where Lightning looks for set_epoch

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch (0-based) of the next iteration."""
        self.epoch = epoch

    def __len__(self) -> int:
        if not self.shuffle:
            return math.ceil(len(range(self.rank, self.n, self.world_size)) / self.batch_size)
        full, left = divmod(self.n, self.batch_size * self.world_size)
        return max(1, full + (left >= self.world_size * min(2, self.batch_size)))

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        generator = np.random.default_rng([self.seed, self.epoch])
        if not self.shuffle:
            order = np.arange(self.n)
        elif self.groups is None:
            order = generator.permutation(self.n)
        else:
            order = balanced_order(self.groups, generator)
        step, last = self.batch_size * self.world_size, len(self) - 1
        for batch in range(self.start_batch if self.epoch == self.start_epoch else 0, last + 1):
            images = order[batch * step : None if batch == last else (batch + 1) * step]
            yield [(self.epoch, int(position)) for position in images[self.rank :: self.world_size]]


def balanced_order(groups: npt.NDArray[np.int64], generator: np.random.Generator) -> npt.NDArray[np.int64]:
    """Return (N,) positions in which each group occurs equally often, give or take one.

    The order consists of rounds, each a permutation of the groups. From round to round a group contributes the next of
    its images in random order, and begins anew when all have been drawn.

    Args:
        groups: (N,) group of each image, any integers.
        generator: random generator of the epoch.
    """
    _, groups, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    shuffled = generator.permutation(len(groups))
    members = shuffled[np.argsort(groups[shuffled], kind="stable")]  # by group, in random order
    first = np.cumsum(sizes) - sizes
    rounds = range(-(-len(groups) // len(sizes)))
    drawn = [(round_, generator.permutation(len(sizes))) for round_ in rounds]
    order = np.concatenate([members[first[order] + round_ % sizes[order]] for round_, order in drawn])
    return order[: len(groups)]


def start_worker(worker_id: int) -> None:
    """Limit OpenCV and torch to one thread, since workers share the cores, and leave signals to the parent.

    Ctrl-C and a cluster's SIGTERM reach the workers too, which would inherit the handler that saves the run. The main
    process needs one more batch to stop, and then ends its workers; a worker ends by itself ``GRACE`` seconds after
    SIGTERM, and immediately on SIGALRM, which the main process sends when an error ends it. It ends with code 0: torch
    raises in the main process when a worker is killed.
    """
    del worker_id
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGALRM, lambda *_: os._exit(0))
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE))
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
