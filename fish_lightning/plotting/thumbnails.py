"""Small versions of image files, for figures and reports."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from fish_lightning.data.decoding import UnreadableImage, decode


def thumbnail(path: Path, size: int = 200) -> npt.NDArray[np.uint8]:
    """Shrink an image file; an unreadable one becomes a grey rectangle.

    Returns:
        (H, W, 3) uint8, the longer side at most ``size`` pixels.
    """
    try:
        image = Image.fromarray(decode(path))
    except UnreadableImage:
        return np.full((size * 3 // 4, size, 3), 200, np.uint8)
    image.thumbnail((size, size))
    return np.asarray(image)
