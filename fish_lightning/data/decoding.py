"""The one place that opens images: training, evaluation, prediction, reports and the near-duplicate search agree.

It does not import torch, so that plots and reports need not either.
"""

import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from fish_lightning.data import remote
from fish_lightning.errors import UserError

#: All that is ever parsed; MPO, of phones, is a JPEG variant. Pillow would try all formats, and start Ghostscript for
#: PostScript.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
#: Pixels of the largest image, 600 MB when decoded: as many as the largest sensors have.
MAX_PIXELS = 200_000_000

_TOO_LARGE = f"more than {MAX_PIXELS // 10**6} million pixels: scale it down"

Image.MAX_IMAGE_PIXELS = MAX_PIXELS  # beyond twice that, Pillow itself refuses


class UnreadableImage(UserError):
    """A file that is not an image, or is corrupt."""


class TooManyPixels(UnreadableImage):
    """An image that is refused before it is decoded."""


class InMemory(io.BytesIO):
    """The content of an image file; error messages name the file by its ``str``.

    Args:
        content: encoded image, as in a file.
        name: name of the file, for errors.
    """

    def __init__(self, content: bytes, name: str) -> None:
        super().__init__(content)
        self.size, self._name = len(content), name

    def __str__(self) -> str:
        return self._name


@contextmanager
def opened(path: str | Path | InMemory) -> Iterator[Image.Image]:
    """Open an image file whose header is valid and whose size is bounded; nothing is decoded yet.

    Whatever fails while the image is in use is reported as an :class:`UnreadableImage` that names the file.

    Raises:
        UnreadableImage: the file is missing, empty, corrupt, too large, no regular file, or not one of ``FORMATS``.
    """
    is_remote = not isinstance(path, InMemory) and remote.is_remote(path)  # the name of an upload is never opened
    if is_remote:
        path = remote.url_of(str(path))
    size = None
    try:
        if isinstance(path, InMemory):
            size = path.size
        elif not is_remote:
            status = os.stat(path)  # noqa: PTH116 - follows links; a pipe or a device would block open()
            if not stat.S_ISREG(status.st_mode):
                raise UnreadableImage(f"{path}: not a regular file")
            size = status.st_size
        with (
            remote.opened(str(path)) if is_remote else nullcontext(path) as source,
            Image.open(source, formats=FORMATS) as image,
        ):
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise TooManyPixels(f"{path}: {width} x {height} pixels are {_TOO_LARGE}")
            yield image
    except UserError:  # UnreadableImage, or a signal that ends the program
        raise
    except UnidentifiedImageError:
        fault = "an empty file" if size == 0 else "not an image (PNG, JPEG, WebP, BMP or TIFF)"
        raise UnreadableImage(f"{path}: {fault}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise TooManyPixels(f"{path}: {_TOO_LARGE}") from None
    except Exception as error:  # corrupt bytes make Pillow's parsers raise anything
        raise UnreadableImage(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None


def decode(path: str | Path | InMemory) -> npt.NDArray[np.uint8]:
    """Decode an image file to RGB, rotated upright by its EXIF orientation.

    Gray of up to 16 bits is scaled to 8, black and white of its type becoming 0 and 255; palettes, CMYK and YCbCr
    are converted; transparency is dropped. Floating-point, signed and 32-bit pixels are refused, since the file does
    not say which of their values is white.

    Returns:
        (H, W, 3) uint8.

    Raises:
        UnreadableImage: see :func:`opened`; or its pixels have no defined white.
    """
    with opened(path) as image:
        upright: Any = ImageOps.exif_transpose(image)
        if upright.mode[0] in "IF":
            wide = np.asarray(upright, dtype=np.float64)
            # Pillow would clip gray of more than 8 bits to 255.
            upright = Image.fromarray((wide / (_white(path, image) / 255.0)).clip(0, 255).astype(np.uint8))
        return np.array(upright.convert("RGB"))  # a copy: torch requires it writable


def _white(path: str | Path | InMemory, image: Image.Image) -> int:
    """Return the white level of a gray image of more than 8 bits; raise an error if it has none."""
    tags: Any = getattr(image, "tag_v2", {})  # of a TIFF; PNG has 16 bits
    bits, sample_format = tags.get(258, (16,))[0], tags.get(339, (1,))[0]  # BitsPerSample; SampleFormat: 1 is unsigned
    if image.mode == "F" or bits > 16 or sample_format != 1:
        of = "floating-point" if image.mode == "F" else f"{bits}-bit" if bits > 16 else "signed"
        raise UnreadableImage(f"{path}: {of} pixels, whose white level is undefined: convert it to 8 or 16 bits")
    return int(2**bits) - 1
