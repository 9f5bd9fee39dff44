"""Background replacement: the object of a training image is pasted onto the background of another one.

What is behind an object then says nothing about its class, so that the model learns from the object. This requires
masks of the objects (:mod:`fish_lightning.data.masks`), which are decoded and resized once, as images are.

Source: Nauen et al. 2025 (ForAug, arXiv:2503.09399), who also move and scale the object. As there, the object of the
other image is painted over, here with what surrounds it.
"""

import os
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from fish_lightning.data.cache import Pipelines, PixelCache, open_cache
from fish_lightning.data.catalog import Catalog
from fish_lightning.data.decoding import UnreadableImage
from fish_lightning.data.keys import keyed_seed
from fish_lightning.data.masks import BLACK, estimate_mask, mask_files
from fish_lightning.errors import UserError

Pixels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.uint8]  # 1 on the object, 0 elsewhere

FRINGE = np.ones((5, 5), np.uint8)  # around an object, pixels are mixed with its colors
GAINS = 0.5, 2.0  # least and largest factor of a channel when colors are matched


class Backgrounds:
    """Pastes objects onto the backgrounds of other training images, drawn from all classes alike.

    Whether an image is changed, and which background it gets, depends on (seed, epoch, index) alone. An image without
    a mask, or whose mask is empty or covers all of it, stays as it is, and no other image gets its background.

    Args:
        images: decoded images, by index in the catalog.
        masks: decoded masks.
        rows: row of ``masks`` for each training image that has a mask, by index in the catalog.
        seed: the run's random seed.
        share: fraction of the images whose background is replaced, 0 to 1.
        match_colors: whether a background gets the mean color of the one that it replaces.
    """

    def __init__(
        self,
        images: PixelCache,
        masks: PixelCache,
        rows: dict[int, int],
        seed: int,
        share: float,
        match_colors: bool = False,
    ) -> None:
        self.images, self.masks, self.seed, self.share, self.match_colors = images, masks, seed, share, match_colors
        self.rows = np.full(len(images.pixels), -1)
        self.rows[list(rows)] = list(rows.values())
        self.donors = np.array(sorted(rows))

    def __call__(self, pixels: Pixels, epoch: int, index: int) -> Pixels:
        """Return an image, (H, W, 3), as used for training in that epoch, before other transforms."""
        if self.rows[index] < 0 or keyed_seed(self.seed, epoch, index, 0) >= self.share * 2.0**64:
            return pixels
        donor = int(self.donors[keyed_seed(self.seed, epoch, index, 1) % len(self.donors)])
        try:
            mask, other = self._mask(index), self.images[donor]
            hole = np.asarray(cv2.dilate(self._mask(donor), FRINGE), np.uint8)
        except UnreadableImage:
            return pixels
        if not all(0 < cv2.countNonZero(one) < one.size for one in (mask, hole)):
            return pixels
        background = painted_over(other, hole)
        if self.match_colors:
            background = recolored(background, mean_color(other, hole), mean_color(pixels, mask))
        return np.asarray(cv2.copyTo(pixels, mask, background), np.uint8)

    def _mask(self, index: int) -> Mask:
        """Return the (H, W) mask of an image; as in ``load_mask``, the object is brighter than half of the maximum."""
        red, green, blue = cv2.split(self.masks[int(self.rows[index])])
        gray = cv2.max(cv2.max(red, green), blue)  # a sixth of the time of numpy
        return np.asarray(cv2.threshold(gray, cv2.minMaxLoc(gray)[1] / 2, 1, cv2.THRESH_BINARY)[1], np.uint8)


def painted_over(pixels: Pixels, hole: Mask) -> Pixels:
    """Return an image in which a hole is filled with what surrounds it (Telea 2004, ``cv2.inpaint``).

    Args:
        pixels: (H, W, 3) image.
        hole: (H, W) mask, neither empty nor full.
    """
    return np.asarray(cv2.inpaint(pixels, hole, 3, cv2.INPAINT_TELEA), np.uint8)


def mean_color(pixels: Pixels, mask: Mask) -> npt.NDArray[np.float64]:
    """Return the mean of each channel, 1 to 255, outside a mask and outside the black corners of a rotated image.

    Args:
        pixels: (H, W, 3) image.
        mask: (H, W) mask of what is not counted.
    """
    black = cv2.inRange(pixels, (0, 0, 0), (BLACK - 1,) * 3)
    counted = cv2.bitwise_not(cv2.bitwise_or(black, mask * 255))
    return np.maximum(cv2.mean(pixels, counted)[:3], 1.0)


def recolored(pixels: Pixels, given: npt.NDArray[np.float64], wanted: npt.NDArray[np.float64]) -> Pixels:
    """Return an image whose channels are scaled from one mean color to another, by factors from 0.5 to 2.

    A camera's white balance and the light change the colors of an object and of what it lies on alike.

    Args:
        pixels: (H, W, 3) image.
        given: (3,) mean color of the image.
        wanted: (3,) mean color that it gets.
    """
    return np.rint(pixels * np.clip(wanted / given, *GAINS)).clip(0, 255).astype(np.uint8)


def open_masks(
    catalog: Catalog, pipelines: Pipelines, folder: Path, in_ram: bool, estimate: bool
) -> tuple[PixelCache, dict[int, int]]:
    """Return the masks of the training images of a catalog, decoded and resized as the images are.

    Args:
        catalog: the run's catalog.
        pipelines: the run's pipelines, whose head is applied to the masks.
        folder: cache folder.
        in_ram: whether to keep the masks in memory instead of writing a file.
        estimate: whether to estimate the masks of a data set that has none
            (:func:`fish_lightning.data.masks.estimate_mask`).

    Returns:
        The masks, and the row of each training image that has one, by its index in the catalog.

    Raises:
        UserError: there are no masks, or there is no space for them.
    """
    training = catalog.indices("train")
    files = mask_files(catalog, training)
    content, read = "masks", None
    if len(files) < 2 and estimate:
        files = dict(zip(training.tolist(), catalog.take(training).files, strict=True))
        content, read = "estimated masks", estimate_mask
    if len(files) < 2:
        raise UserError(
            f"transforms.backgrounds requires masks of 2 training images or more: {catalog.root} has {len(files)}\n"
            "the mask of 'Class/1.png' is 'Class GT/1.png', white on the object\n"
            "without masks choose other transforms, or estimate them: transforms.estimate_masks=true"
        )
    paths = np.array([os.path.relpath(file, catalog.root) for file in files.values()])
    table = replace(catalog.take(np.array(list(files))), paths=paths)
    masks = open_cache(table, pipelines, folder, in_ram, content, read)
    return masks, {index: row for row, index in enumerate(files) if row not in masks.errors}
