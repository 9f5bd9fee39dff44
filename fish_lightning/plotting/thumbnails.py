"""Small versions of image files, for figures and reports."""

import base64
import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from fish_lightning.data.decoding import UnreadableImage, decode


def thumbnail(path: str | Path, size: int = 200) -> npt.NDArray[np.uint8]:
    """Shrink an image file; an unreadable one becomes a gray rectangle.

    Returns:
        (H, W, 3) uint8, the longer side at most ``size`` pixels.
    """
    try:
        return np.asarray(shrunk(decode(path), size))
    except UnreadableImage:
        return np.full((size * 3 // 4, size, 3), 200, np.uint8)


def shrunk(pixels: npt.NDArray[np.uint8], size: int) -> Image.Image:
    """Shrink (H, W, 3) pixels until the longer side is at most ``size``."""
    image = Image.fromarray(pixels)
    image.thumbnail((size, size))
    return image


def data_uri(picture: Image.Image, file_format: str = "jpeg", **options: object) -> str:
    """Return a picture as a data URI, for pages that load nothing; options are those of Pillow's format."""
    buffer = io.BytesIO()
    picture.save(buffer, file_format, **options)
    return f"data:image/{file_format};base64,{base64.b64encode(buffer.getvalue()).decode()}"
