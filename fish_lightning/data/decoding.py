"""The one image decoder: training, evaluation, prediction and the near-duplicate search see the same pixels.

It does not import torch, so that plots and reports need not either.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from fish_lightning.errors import UserError


class UnreadableImage(UserError):
    """A file that is not an image, or is corrupt."""


def decode(path: str | Path) -> npt.NDArray[np.uint8]:
    """Decode an image file to RGB, rotated upright by its EXIF orientation.

    Returns:
        (H, W, 3) uint8.

    Raises:
        UnreadableImage: the file is missing, empty, truncated or not an image.
    """
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I;16") or upright.mode == "I":
                # Pillow clips 16-bit grey to 255 on conversion; scale it instead.
                wide = np.asarray(upright, dtype=np.float64)
                upright = Image.fromarray((wide / 257.0).clip(0, 255).astype(np.uint8))
            return np.array(upright.convert("RGB"))  # a copy: torch requires it writable
    except UnidentifiedImageError:
        size = Path(path).stat().st_size
        raise UnreadableImage(f"{path}: {'an empty file' if size == 0 else 'not an image'}") from None
    except Exception as error:  # corrupt bytes make Pillow's parsers raise anything
        raise UnreadableImage(f"{path}: cannot be read ({error})") from None
