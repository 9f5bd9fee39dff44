"""Masks: which pixels of an image show the object.

The fish archive and the sample data have them beside the images: the mask of ``<Class>/00001.png`` is
``<Class> GT/00001.png``, white where the object is. For other images they can be estimated.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import albumentations as A
import cv2
import numpy as np
import numpy.typing as npt

from fish_lightning.data.catalog import Catalog
from fish_lightning.data.decoding import decode
from fish_lightning.data.listing import MASK_SUFFIX, images_below

Mask = npt.NDArray[np.bool_]
#: Height and width at which the object is separated from its background; width of the border that is background.
HEIGHT, WIDTH, BORDER = 96, 128, 4
#: Pixels of 0 to 255 below it are the corners that rotating an image leaves.
BLACK = 12
#: Share of an image that an object covers; an estimate outside of this is dropped.
SMALLEST, LARGEST = 0.02, 0.5


def mask_files(catalog: Catalog, indices: Sequence[int] | npt.NDArray[np.int64]) -> dict[int, Path]:
    """Return the mask file of each image that has one, by index in the catalog, in the order of ``indices``.

    Args:
        catalog: the whole catalog.
        indices: indices of the images to look up.
    """
    found: dict[Path, dict[str, Path]] = {}  # by folder of masks and stem; each folder is listed once
    files = {}
    for index in map(int, indices):
        image = catalog.root / str(catalog.paths[index])
        folder = image.parent.parent / (image.parent.name + MASK_SUFFIX)
        if folder not in found:
            found[folder] = {file.stem: file for file in images_below(folder)}
        if image.stem in found[folder]:
            files[index] = found[folder][image.stem]
    return files


def estimate_mask(file: Path) -> npt.NDArray[np.uint8]:
    """Estimate which pixels show the object: GrabCut, from an ellipse in the middle of the image.

    The border, and black corners such as rotating an image leaves, are background; of what GrabCut separates from it,
    the largest connected part is the object.

    Args:
        file: an image with one object that does not touch the border on all sides.

    Returns:
        (HEIGHT, WIDTH, 3) mask, white on the object; all black where it would be too small or too large.

    Raises:
        UnreadableImage: the file is missing, damaged, or not an image.

    Source: C. Rother, V. Kolmogorov and A. Blake, GrabCut, SIGGRAPH 2004; ``cv2.grabCut``.
    """
    pixels = cv2.resize(decode(file), (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
    small, large = np.ones((3, 3), np.uint8), np.ones((5, 5), np.uint8)
    state = np.full((HEIGHT, WIDTH), cv2.GC_PR_BGD, np.uint8)
    cv2.ellipse(state, (WIDTH // 2, HEIGHT // 2), (int(0.3 * WIDTH), int(0.3 * HEIGHT)), 0, 0, 360, cv2.GC_PR_FGD, -1)
    state[:BORDER] = state[-BORDER:] = state[:, :BORDER] = state[:, -BORDER:] = cv2.GC_BGD
    corners = cv2.morphologyEx((pixels.max(2) < BLACK).astype(np.uint8), cv2.MORPH_OPEN, small)
    state[cv2.dilate(corners, large) > 0] = cv2.GC_BGD
    nothing = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    if not (state == cv2.GC_PR_FGD).any():
        return nothing
    cv2.setRNGSeed(0)  # of this thread, for the k-means that GrabCut starts with
    background, foreground = np.zeros((1, 65)), np.zeros((1, 65))
    lab = cv2.cvtColor(pixels, cv2.COLOR_RGB2LAB)
    cv2.grabCut(lab, state, None, background, foreground, 4, cv2.GC_INIT_WITH_MASK)  # type: ignore[call-overload]
    found = ((state == cv2.GC_FGD) | (state == cv2.GC_PR_FGD)).astype(np.uint8)
    parts, numbers, sizes, _ = cv2.connectedComponentsWithStats(cv2.morphologyEx(found, cv2.MORPH_OPEN, small))
    if parts < 2:
        return nothing
    largest = 1 + int(sizes[1:, cv2.CC_STAT_AREA].argmax())
    mask = cv2.morphologyEx((numbers == largest).astype(np.uint8), cv2.MORPH_CLOSE, large)
    if not SMALLEST < mask.mean() < LARGEST:
        return nothing
    return np.repeat(255 * mask[:, :, None], 3, axis=2)


def load_mask(file: Path, transform: A.Compose) -> Mask:
    """Load a mask as the model sees its image: with the same geometry, by the nearest pixel.

    Args:
        file: a mask; the object is what is brighter than half of its maximum, so that 1 serves as well as 255.
        transform: the evaluation pipeline that the images go through.

    Returns:
        (H, W) mask, True on the object; all False for a black mask file.

    Raises:
        UnreadableImage: the file is missing, damaged, or not an image.
    """
    gray = decode(file).max(2)
    # Pipelines require an image; those of evaluation look at its size only.
    seen: Any = transform(image=np.zeros((*gray.shape, 3), np.uint8), mask=gray)["mask"]
    return np.asarray(seen > gray.max() / 2)
