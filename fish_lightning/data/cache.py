"""The cache of decoded images: one uint8 file per data set and size, memory-mapped by all processes.

It stores the result of decoding and of the deterministic head of the albumentations pipelines
(:func:`split_pipelines`). Its file name is a hash of the folder, the head, and the name, size and modification time of
every image, so a cache file never changes: if images do, a new file is written, which copies unchanged images from the
previous one.

Images are decoded in threads: Pillow and OpenCV release the GIL, and nothing has to survive a fork or a spawn.
"""

import functools
import hashlib
import json
import math
import os
import shutil
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import albumentations as A
import cv2
import numpy as np
import numpy.typing as npt
import PIL

from fish_lightning.data.catalog import Catalog
from fish_lightning.data.decoding import UnreadableImage, decode
from fish_lightning.errors import UserError
from fish_lightning.files import atomic_write, byte_size, locked, shown, state_of
from fish_lightning.hardware import in_threads, memory
from fish_lightning.run_log import say

Pixels = npt.NDArray[np.uint8]
Digests = npt.NDArray[np.uint8]
#: An image, and why it cannot be read.
Decoded = tuple[Pixels, str | None]
#: Returns (H, W, 3) uint8 for an image file.
Read = Callable[[Path], npt.NDArray[np.uint8]]

#: Increment it with every change here or in ``decoding.py`` that can change a pixel.
VERSION = 2
#: Transforms without randomness, and those after which all images have the same size.
DETERMINISTIC = (A.Resize, A.CenterCrop, A.LongestMaxSize, A.SmallestMaxSize)
FIXED_SIZE = (A.Resize, A.CenterCrop)
#: How often a cache file is written that is deleted right away.
ATTEMPTS = 2
ELSEWHERE = "choose another folder (data.cache_dir=DIR) or use data.cache=off"


@dataclass(frozen=True)
class Pipelines:
    """Two pipelines, split after their cached head.

    Attributes:
        head: common beginning of both pipelines, whose result is cached.
        train: the rest of the training pipeline.
        evaluate: the rest of the evaluation pipeline.
        height: height of a cached image in pixels.
        width: width of a cached image in pixels.
    """

    head: A.Compose
    train: A.Compose
    evaluate: A.Compose
    height: int
    width: int


def split_pipelines(train: A.Compose, evaluate: A.Compose) -> Pipelines | None:
    """Split two pipelines after their longest common deterministic head with a fixed output size.

    Returns:
        The parts, or None if there is no such head.
    """
    shared = 0
    for number, (ours, theirs) in enumerate(zip(train.transforms, evaluate.transforms, strict=False), 1):
        same = isinstance(ours, DETERMINISTIC) and ours.p == 1 and ours.to_dict() == theirs.to_dict()
        if not same or train.p != 1 or evaluate.p != 1:
            break
        if isinstance(ours, FIXED_SIZE):
            shared = number
    if not shared:
        return None
    last: Any = train.transforms[shared - 1]
    return Pipelines(
        head=A.Compose(train.transforms[:shared]),
        train=A.Compose(train.transforms[shared:]),
        evaluate=A.Compose(evaluate.transforms[shared:]),
        height=int(last.height),
        width=int(last.width),
    )


class PixelCache:
    """The decoded images of a catalog, by index.

    All processes share the pages of a memory-mapped file. Forked workers inherit the mapping, and so survive the
    deletion of the file; spawned ones open it by name.

    Args:
        pixels: (N, H, W, 3) images, memory-mapped or in memory.
        errors: error message for each index whose file cannot be read.
        file: file that ``pixels`` is mapped from; None if it is in memory.
    """

    def __init__(self, pixels: Pixels, errors: dict[int, str], file: Path | None = None) -> None:
        self.errors = errors
        self._file = file
        self._pixels: Pixels | None = pixels

    @property
    def pixels(self) -> Pixels:
        """(N, H, W, 3) RGB, read-only if mapped; unreadable images are black."""
        if self._pixels is None:
            assert self._file is not None
            self._pixels = np.load(self._file, mmap_mode="r")
        return self._pixels

    def __getitem__(self, index: int) -> Pixels:
        """Return a writable copy of one image, (H, W, 3).

        Raises:
            UnreadableImage: its file could not be read.
        """
        if index in self.errors:
            raise UnreadableImage(self.errors[index])
        return np.array(self.pixels[index])

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the mapped pixels, which pickling would copy."""
        return self.__dict__ | ({"_pixels": None} if self._file is not None else {})


def open_cache(
    catalog: Catalog,
    pipelines: Pipelines,
    folder: Path,
    in_ram: bool = False,
    content: str = "images",
    read: Read | None = None,
) -> PixelCache:
    """Return the decoded images of a catalog, from the cache file or decoded now.

    If several processes request the same file, one writes it and the others wait.

    Args:
        catalog: catalog of N images.
        pipelines: pipelines whose head is applied to each image.
        folder: cache folder.
        in_ram: whether to keep the images in memory instead of writing a file (an existing one is still read); for
            small data sets.
        content: what is cached: ``"images"``, ``"masks"`` or ``"estimated masks"``.
        read: function that returns the (H, W, 3) uint8 image in a file; None: ``decode``.

    Raises:
        UserError: there is not enough free space, on disk or in memory.
    """
    root = _hexdigest(str(catalog.root.resolve()).encode(errors="surrogateescape"))
    versions = [VERSION, PIL.__version__, cv2.__version__, A.__version__]
    head = _hexdigest(json.dumps([*versions, A.to_dict(pipelines.head)], default=str).encode())
    digests = _digests(catalog)
    family = f"{'pixels' if content == 'images' else content.replace(' ', '-')}-{root}-{head}"
    file = folder / f"{family}-{_hexdigest(digests.tobytes())}.npy"
    shape = (len(catalog), pipelines.height, pipelines.width, 3)
    size = byte_size(math.prod(shape))
    decoded = functools.partial(_decoded, pipelines, read or decode)
    if in_ram and math.prod(shape) > memory() / 2:
        raise UserError(
            f"data.cache=ram: the decoded images take {size}, more than half of this machine's memory\n"
            "use data.cache=on (a file) or smaller images (transforms.height, transforms.width)"
        )
    stored = _open(file, shape[1:])[0]
    if in_ram:
        if stored is not None:
            return PixelCache(np.array(stored.pixels), stored.errors)
        say(f"decoding {len(catalog):,} {content} to {shape[1]}x{shape[2]} in memory: {size}")
        pixels, errors = np.empty(shape, np.uint8), {}
        for index, (image, error) in enumerate(decoded(catalog.files)):
            pixels[index] = image
            if error is not None:
                errors[index] = error
        return PixelCache(pixels, errors)
    if stored is not None:
        return stored
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / f"{family}.lock", "waiting for another run that is decoding the same images"):
            stored = _open(file, shape[1:])[0]
            for _ in range(ATTEMPTS):
                if stored is None:
                    _write(file, family, catalog.files, digests, shape, content, decoded)
                    stored = _open(file, shape[1:])[0]
    except OSError as error:
        raise UserError(
            f"data.cache: the decoded images cannot be written to {folder} ({error.strerror or error})\n"
            f"they take {size}: free some space, {ELSEWHERE}"
        ) from None
    if stored is None:
        raise UserError(
            f"data.cache: {file} was deleted or corrupted right after it was written, {ATTEMPTS} times\n"
            f"find out what deletes it, {ELSEWHERE}"
        )
    return stored


def _write(
    file: Path,
    family: str,
    images: list[Path],
    digests: Digests,
    shape: tuple[int, ...],
    content: str,
    decoded: Callable[[list[Path]], Iterator[Decoded]],
) -> None:
    """Write the file atomically; unchanged images are copied from the previous file of the family."""
    folder, size = file.parent, math.prod(shape)
    for left_over in folder.glob(f".*.{family}-*"):  # of a killed process: this one has the lock
        left_over.unlink(missing_ok=True)
    former = sorted((f for f in folder.glob(f"{family}-*.npy") if f != file), key=lambda f: f.stat().st_mtime_ns)
    kept: PixelCache | None = None
    known: dict[bytes, int] = {}
    for other in former:  # the newest that is intact, which comes last
        cache, of_cache = _open(other, shape[1:])
        if cache is not None:
            kept, known = cache, {digest.tobytes(): index for index, digest in enumerate(of_cache)}
    new = [image for image, digest in zip(images, digests, strict=True) if digest.tobytes() not in known]
    free = shutil.disk_usage(folder).free
    if free < size * 1.01:
        raise UserError(
            f"data.cache: the decoded images take {byte_size(size)}, and {folder} has {byte_size(free)} free\n"
            f"free some space, {ELSEWHERE}"
        )
    work = (
        f"estimating {len(new):,} masks at" if content == "estimated masks" else f"decoding {len(new):,} {content} to"
    )
    print(f"{work} {shape[1]}x{shape[2]}, once: {byte_size(size)} in {shown(folder)}", flush=True)
    errors: dict[int, str] = {}
    with atomic_write(file) as temporary, temporary.open("wb") as stream:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(stream, header)
        fresh = decoded(new)
        for index, digest in enumerate(digests):
            old = known.get(digest.tobytes())
            pixels, error = next(fresh) if kept is None or old is None else (kept.pixels[old], kept.errors.get(old))
            if error is not None:
                errors[index] = error
            stream.write(pixels.tobytes())
        # Before the pixels get their name: a file of pixels always has one.
        with atomic_write(file.with_suffix(".npz")) as info, info.open("wb") as written:
            np.savez(written, digests=digests, errors=np.array(json.dumps(errors)))
    for other in former[:-1]:  # keep the newest: runs with two tables of one folder may alternate
        other.unlink(missing_ok=True)
        other.with_suffix(".npz").unlink(missing_ok=True)


def _decoded(pipelines: Pipelines, read: Read, files: list[Path]) -> Iterator[Decoded]:
    """Yield decoded images in the order of ``files``; an unreadable one is black, with its error."""
    own = threading.local()  # a pipeline is stateful
    recipe = A.to_dict(pipelines.head)

    def decoded(file: Path) -> Decoded:
        if not hasattr(own, "head"):
            own.head = A.from_dict(recipe)
        try:
            return own.head(image=read(file))["image"], None
        except UnreadableImage as error:
            return np.zeros((pipelines.height, pipelines.width, 3), np.uint8), str(error)

    yield from in_threads(decoded, files, "decoding")


def _open(file: Path, size: tuple[int, ...]) -> tuple[PixelCache | None, Digests]:
    """Return the images stored in a file, (N, *size), and their digests; None if it is missing or corrupt."""
    nothing = None, np.empty((0, 16), np.uint8)
    try:
        with np.load(file.with_suffix(".npz")) as info:
            digests, errors = info["digests"], json.loads(str(info["errors"]))
        pixels = np.load(file, mmap_mode="r")
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return nothing
    if pixels.shape != (len(digests), *size) or pixels.dtype != np.uint8:
        return nothing
    return PixelCache(pixels, {int(index): error for index, error in errors.items()}, file), digests


def _digests(catalog: Catalog) -> Digests:
    """Return (N, 16) hashes of each file's name, size and modification time."""
    root = str(catalog.root)
    states = (state_of(path, os.path.join(root, path)) for path in catalog.paths.tolist())  # noqa: PTH118
    digests = (hashlib.blake2b(state.encode(errors="surrogateescape"), digest_size=16).digest() for state in states)
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 16)


def _hexdigest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]
