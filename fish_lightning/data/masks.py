"""Masks: which pixels of an image show the object, where the data set says so.

The fish archive and the sample data have them beside the images: the mask of ``<Class>/00001.png`` is
``<Class> GT/00001.png``, white where the object is.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import albumentations as A
import numpy as np
import numpy.typing as npt

from fish_lightning.data.catalog import Catalog
from fish_lightning.data.decoding import decode
from fish_lightning.data.folders import MASK_SUFFIX, images_below

Mask = npt.NDArray[np.bool_]


def mask_files(catalog: Catalog, indices: Sequence[int] | npt.NDArray[np.int64]) -> dict[int, Path]:
    """Return the mask's file of each image that has one, by index in the catalog, in the order of ``indices``.

    Args:
        catalog: the whole table.
        indices: images to look up.
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


def load_mask(file: Path, transform: A.Compose) -> Mask:
    """Load a mask as the model sees its image: with the same geometry, by the nearest pixel.

    Args:
        file: a mask; the object is what is brighter than half of its maximum, so that 0 and 1 will do for 0 and 255.
        transform: the evaluation pipeline that the images go through.

    Returns:
        (H, W), True on the object; all False for a black mask.

    Raises:
        UnreadableImage: the file is missing, damaged, or not an image.
    """
    gray = decode(file).max(2)
    # Pipelines require an image; those of evaluation look at its size only.
    seen: Any = transform(image=np.zeros((*gray.shape, 3), np.uint8), mask=gray)["mask"]
    mask: Mask = np.asarray(seen) > gray.max() / 2
    return mask
