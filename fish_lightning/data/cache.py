"""The cache of decoded images: one uint8 file per data set and size, memory-mapped by all processes.

It stores the result of decoding and of the deterministic head of the albumentations pipelines
(:func:`split_pipelines`). Its file name is a hash of the folder, the head, and the name, size and modification time of
every image, so a cache file never changes: if images do, a new file is written, which copies unchanged images from the
previous one.

Images are decoded in threads: Pillow and OpenCV release the GIL, and nothing has to survive a fork or a spawn.
"""

import hashlib
import json
import os
import shutil
import threading
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import albumentations as A
import cv2
import numpy as np
import numpy.typing as npt
import PIL
from tqdm import tqdm

from fish_lightning.data.catalog import Catalog
from fish_lightning.data.decoding import UnreadableImage, decode
from fish_lightning.errors import UserError
from fish_lightning.files import atomic_write, byte_size, locked, shown, state_of
from fish_lightning.hardware import memory
from fish_lightning.run_log import say

Pixels = npt.NDArray[np.uint8]
Digests = npt.NDArray[np.uint8]
#: Returns (H, W, 3) uint8 for an image file.
Read = Callable[[Path], npt.NDArray[np.uint8]]

#: Increment it with every change here or in ``decoding.py`` that can change a pixel.
VERSION = 2
#: Transforms without randomness, and those after which all images have the same size.
DETERMINISTIC = (A.Resize, A.CenterCrop, A.LongestMaxSize, A.SmallestMaxSize)
FIXED_SIZE = (A.Resize, A.CenterCrop)
#: How often a cache file is written that is deleted right away.
ATTEMPTS = 2
#: Images submitted to the thread pool at a time: bounds the decoded images that wait to be written.
BLOCK = 1024


@dataclass(frozen=True)
class Pipelines:
    """Two pipelines, split after their cached head.

    Attributes:
        head: the beginning of both, whose result is cached.
        train: the rest of the training pipeline.
        evaluate: the rest of the evaluation pipeline.
        height: of a cached image, in pixels.
        width: of a cached image, in pixels.
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
        pixels: (N, H, W, 3), memory-mapped or in memory.
        errors: message for each index whose file cannot be read.
        file: the file ``pixels`` is mapped from; None if it is in memory.
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

    def black(self) -> Pixels:
        """Return the placeholder of an unreadable image."""
        return np.zeros(self.pixels.shape[1:], np.uint8)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the mapped pixels, which pickling would copy."""
        return self.__dict__ | ({"_pixels": None} if self._file is not None else {})


def open_cache(
    catalog: Catalog,
    pipelines: Pipelines,
    folder: Path,
    workers: int,
    in_ram: bool = False,
    content: str = "images",
    read: Read | None = None,
) -> PixelCache:
    """Return the decoded images of a catalog, from the cache file or decoded now.

    If several processes request the same file, one writes it and the others wait.

    Args:
        catalog: N images.
        pipelines: their head is applied to each image.
        folder: the cache.
        workers: number of decoding threads.
        in_ram: write no file (an existing one is still read); for small data sets.
        content: what is kept, ``"images"``, ``"masks"`` or ``"estimated masks"``.
        read: returns (H, W, 3) uint8 for a file; None: ``decode``.

    Raises:
        UserError: not enough free space, on disk or in memory.
    """
    root = _hexdigest(str(catalog.root.resolve()))
    head = _hexdigest(
        json.dumps([VERSION, PIL.__version__, cv2.__version__, A.__version__, A.to_dict(pipelines.head)], default=str)
    )
    digests = _digests(catalog)
    family = f"{'pixels' if content == 'images' else content.replace(' ', '-')}-{root}-{head}"
    file = folder / f"{family}-{_hexdigest(digests.tobytes())}.npy"
    shape = (len(catalog), pipelines.height, pipelines.width, 3)
    cache = _open(file, shape)
    if in_ram:
        return _in_ram(catalog, pipelines, workers, shape, cache, content, read)
    if cache is not None:
        return cache
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / f"{family}.lock", "waiting for another run that is decoding the same images"):
            cache = _open(file, shape)
            for _ in range(ATTEMPTS):
                if cache is None:
                    _write(catalog, pipelines, file, family, digests, shape, workers, content, read)
                    cache = _open(file, shape)
    except OSError as error:
        raise UserError(
            f"data.cache: the decoded images cannot be written to {folder} ({error.strerror or error})\n"
            f"they take {_cache_size(shape)}: free some space, choose another folder (data.cache_dir=DIR) or "
            "use data.cache=off"
        ) from None
    if cache is None:
        raise UserError(
            f"data.cache: {file} was deleted or corrupted right after it was written, {ATTEMPTS} times\n"
            "find out what deletes it, choose another folder (data.cache_dir=DIR) or use data.cache=off"
        )
    return cache


def _write(
    catalog: Catalog,
    pipelines: Pipelines,
    file: Path,
    family: str,
    digests: Digests,
    shape: tuple[int, ...],
    workers: int,
    content: str,
    read: Read | None,
) -> None:
    """Write the file atomically; unchanged images are copied from the previous file of the family."""
    folder = file.parent
    for left_over in folder.glob(f".*.{family}-*"):  # of a killed process: this one has the lock
        left_over.unlink(missing_ok=True)
    former = [other for other in folder.glob(f"{family}-*.npy") if other != file]
    known, errors, kept = _reusable(former, shape)
    new = [index for index in range(len(catalog)) if digests[index].tobytes() not in known]
    _require_disk(folder, shape)
    work = (
        f"estimating {len(new):,} masks at" if content == "estimated masks" else f"decoding {len(new):,} {content} to"
    )
    print(f"{work} {shape[1]}x{shape[2]}, once: {_cache_size(shape)} in {shown(folder)}", flush=True)
    bad: dict[int, str] = {}
    with atomic_write(file) as temporary, temporary.open("wb") as stream:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(stream, header)
        decoded = _decoded(catalog, pipelines, new, workers, read)
        for index in range(len(catalog)):
            old = known.get(digests[index].tobytes())
            if old is None:
                pixels, error = next(decoded)
            else:
                assert kept is not None
                pixels, error = kept[old], errors.get(old)
            if error is not None:
                bad[index] = error
            stream.write(pixels.tobytes())
        # Before the pixels get their name: a file of pixels always has one.
        with atomic_write(file.with_suffix(".npz")) as info, info.open("wb") as written:
            np.savez(written, digests=digests, errors=np.array(json.dumps(bad)))
    former.sort(key=lambda other: other.stat().st_mtime_ns)
    for other in former[:-1]:  # keep the newest: runs with two tables of one folder may alternate
        other.unlink(missing_ok=True)
        other.with_suffix(".npz").unlink(missing_ok=True)


def _decoded(
    catalog: Catalog, pipelines: Pipelines, indices: list[int], workers: int, read: Read | None
) -> Iterator[tuple[Pixels, str | None]]:
    """Yield decoded images in the order of ``indices``; an unreadable one is black, with its error."""
    own = threading.local()  # a pipeline is stateful
    recipe = A.to_dict(pipelines.head)
    shape = (pipelines.height, pipelines.width, 3)

    def decoded(index: int) -> tuple[Pixels, str | None]:
        if not hasattr(own, "head"):
            own.head = A.from_dict(recipe)
        try:
            pixels: Pixels = own.head(image=(read or decode)(catalog.root / str(catalog.paths[index])))["image"]
        except UnreadableImage as error:
            return np.zeros(shape, np.uint8), str(error)
        return pixels, None

    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # its threads would compete with ours for the cores
    pool = ThreadPoolExecutor(workers)
    try:
        with tqdm(total=len(indices), desc="decoding", unit="image", disable=None) as bar:
            for start in range(0, len(indices), BLOCK):
                for image in pool.map(decoded, indices[start : start + BLOCK]):
                    bar.update()
                    yield image
    finally:
        pool.shutdown(cancel_futures=True)
        cv2.setNumThreads(threads)


def _in_ram(
    catalog: Catalog,
    pipelines: Pipelines,
    workers: int,
    shape: tuple[int, ...],
    cache: PixelCache | None,
    content: str,
    read: Read | None,
) -> PixelCache:
    if int(np.prod(shape)) > memory() / 2:
        raise UserError(
            f"data.cache=ram: the decoded images take {_cache_size(shape)}, more than half of this machine's memory\n"
            "use data.cache=on (a file) or smaller images (transforms.height, transforms.width)"
        )
    if cache is not None:
        return PixelCache(np.array(cache.pixels), cache.errors)
    say(f"decoding {shape[0]:,} {content} to {shape[1]}x{shape[2]} in memory: {_cache_size(shape)}")
    pixels, errors = np.empty(shape, np.uint8), {}
    for index, (image, error) in enumerate(_decoded(catalog, pipelines, list(range(len(catalog))), workers, read)):
        pixels[index] = image
        if error is not None:
            errors[index] = error
    return PixelCache(pixels, errors)


def _open(file: Path, shape: tuple[int, ...]) -> PixelCache | None:
    """Return the cache stored in a file; None if it is missing or corrupt."""
    info = _info(file)
    if info is None:
        return None
    try:
        pixels = np.load(file, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return None
    return PixelCache(pixels, info[1], file) if pixels.shape == shape and pixels.dtype == np.uint8 else None


def _info(file: Path) -> tuple[Digests, dict[int, str]] | None:
    """Return the digest of each image and the errors of unreadable ones; None if they are missing or corrupt."""
    try:
        with np.load(file.with_suffix(".npz")) as info:
            errors = json.loads(str(info["errors"]))
            return np.asarray(info["digests"]), {int(index): error for index, error in errors.items()}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _reusable(former: list[Path], shape: tuple[int, ...]) -> tuple[dict[bytes, int], dict[int, str], Pixels | None]:
    """Return the index of each digest in the newest intact former file, its errors and its pixels."""
    for file in sorted(former, key=lambda path: path.stat().st_mtime_ns, reverse=True):
        info = _info(file)
        if info is not None:
            cache = _open(file, (len(info[0]), *shape[1:]))
            if cache is not None:
                return {digest.tobytes(): index for index, digest in enumerate(info[0])}, info[1], cache.pixels
    return {}, {}, None


def _digests(catalog: Catalog) -> Digests:
    """Return (N, 16) hashes of each file's name, size and modification time."""
    digests = np.empty((len(catalog), 16), np.uint8)
    root = str(catalog.root)
    for index, path in enumerate(catalog.paths.tolist()):
        state = state_of(path, os.path.join(root, path)).encode(errors="surrogateescape")  # noqa: PTH118
        digests[index] = np.frombuffer(hashlib.blake2b(state, digest_size=16).digest(), np.uint8)
    return digests


def _require_disk(folder: Path, shape: tuple[int, ...]) -> None:
    free = shutil.disk_usage(folder).free
    if free < int(np.prod(shape)) * 1.01:
        raise UserError(
            f"data.cache: the decoded images take {_cache_size(shape)}, and {folder} has {byte_size(free)} free\n"
            "free some space, choose another folder (data.cache_dir=DIR) or use data.cache=off"
        )


def _cache_size(shape: tuple[int, ...]) -> str:
    return byte_size(int(np.prod(shape)))


def _hexdigest(state: str | bytes) -> str:
    content = state if isinstance(state, bytes) else state.encode(errors="surrogateescape")
    return hashlib.sha256(content).hexdigest()[:12]
