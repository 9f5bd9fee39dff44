"""Decoded images kept ready: one uint8 file a data set and size, made once and mapped into memory by all processes.

What every image goes through first, whatever the epoch, is done once: decoding and the deterministic head of the
albumentations pipelines (:func:`split_pipelines`). The file's name says what it holds: the folder, the head, and the
names, sizes and times of change of all files. So a file is never changed; where an image is new or another, a new file
takes the rows of the old one that still hold.

Threads decode, since Pillow and OpenCV release the interpreter's lock: nothing has to survive a fork or a spawn.
"""

import hashlib
import json
import os
import shutil
import threading
import zipfile
from collections.abc import Iterator
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
from fish_lightning.files import byte_size, locked, shown, state_of, whole_file

Pixels = npt.NDArray[np.uint8]
Digests = npt.NDArray[np.uint8]

#: Raise it with every change here or in ``decoding.py`` that can change a pixel.
VERSION = 1
#: Transforms that always do the same to the same image, and those of them after which all images have one size.
DETERMINISTIC = (A.Resize, A.CenterCrop, A.LongestMaxSize, A.SmallestMaxSize)
FIXED_SIZE = (A.Resize, A.CenterCrop)
#: Images decoded between two looks at what is done.
BLOCK = 1024


@dataclass(frozen=True)
class Pipelines:
    """Two pipelines, split where the cache stands.

    Attributes:
        head: what both begin with; its result is what is cached.
        train: the rest of the training pipeline.
        evaluate: the rest of the evaluation pipeline.
        height: of a cached image, pixels.
        width: of a cached image, pixels.
    """

    head: A.Compose
    train: A.Compose
    evaluate: A.Compose
    height: int
    width: int


def split_pipelines(train: A.Compose, evaluate: A.Compose) -> Pipelines | None:
    """Split two pipelines after the longest deterministic beginning they share that gives all images one size.

    Returns:
        The parts, or None where there is no such beginning.
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
    """The decoded images of a catalog, by row.

    Where they are in a file, its pages are shared by all processes and nothing is copied to workers: forked ones have
    the mapping, so that the file may even be deleted under them; spawned ones map it by its name.

    Args:
        pixels: (N, H, W, 3), mapped or in memory.
        errors: of the rows whose file could not be read: what was wrong.
        file: that ``pixels`` is mapped from; None: they are in memory.
    """

    def __init__(self, pixels: Pixels, errors: dict[int, str], file: Path | None = None) -> None:
        self.errors = errors
        self._file = file
        self._pixels: Pixels | None = pixels

    @property
    def pixels(self) -> Pixels:
        """(N, H, W, 3), RGB; read-only where it is a file. Rows that could not be read are black."""
        if self._pixels is None:
            assert self._file is not None
            self._pixels = np.load(self._file, mmap_mode="r")
        return self._pixels

    def __getitem__(self, row: int) -> Pixels:
        """One image, (H, W, 3), as a copy that may be written to.

        Raises:
            UnreadableImage: its file could not be read.
        """
        if row in self.errors:
            raise UnreadableImage(self.errors[row])
        return np.array(self.pixels[row])

    def black(self) -> Pixels:
        """An image in place of one that could not be read."""
        return np.zeros(self.pixels.shape[1:], np.uint8)

    def __getstate__(self) -> dict[str, Any]:
        """Without the mapped file: pickling would copy all of it."""
        return self.__dict__ | ({"_pixels": None} if self._file is not None else {})


def open_cache(catalog: Catalog, pipelines: Pipelines, folder: Path, workers: int, in_ram: bool = False) -> PixelCache:
    """The decoded images of a catalog, made where they are not there yet.

    Of several processes that want the same file at once, one makes it and the others wait.

    Args:
        catalog: N images.
        pipelines: the head is applied to each.
        folder: the cache.
        workers: threads that decode.
        in_ram: keep nothing on disk (but use what is there); for small sets.

    Raises:
        UserError: too little room, on disk or in memory.
    """
    root = _hexdigest(str(catalog.root.resolve()))
    head = _hexdigest(
        json.dumps([VERSION, PIL.__version__, cv2.__version__, A.__version__, A.to_dict(pipelines.head)], default=str)
    )
    digests = _state_of_files(catalog)
    family = f"pixels-{root}-{head}"
    file = folder / f"{family}-{_hexdigest(digests.tobytes())}.npy"
    shape = (len(catalog), pipelines.height, pipelines.width, 3)
    made = _open(file, shape)
    if in_ram:
        return _in_ram(catalog, pipelines, workers, shape, made)
    if made is not None:
        return made
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / f"{family}.lock", "waiting for another run that decodes the same images"):
            made = _open(file, shape)
            if made is None:
                _make(catalog, pipelines, file, family, digests, shape, workers)
                made = _open(file, shape)
    except OSError as error:
        raise UserError(
            f"data.cache: the decoded images cannot be kept in {folder} ({error.strerror or error})\n"
            f"they take {_cache_size(shape)}; make room, name another folder (data.cache_dir=DIR), or go without: "
            "data.cache=off"
        ) from None
    assert made is not None
    return made


def _make(
    catalog: Catalog,
    pipelines: Pipelines,
    file: Path,
    family: str,
    digests: Digests,
    shape: tuple[int, ...],
    workers: int,
) -> None:
    """Write the file, whole or not at all; rows whose file is unchanged are taken from the family's former file."""
    folder = file.parent
    for left_over in folder.glob(f".*.{family}-*"):  # of a process that was killed: no other makes this family now
        left_over.unlink(missing_ok=True)
    former = [other for other in folder.glob(f"{family}-*.npy") if other != file]
    known, errors, kept = _reusable(former, shape)
    new = [row for row in range(len(catalog)) if digests[row].tobytes() not in known]
    _require_disk(folder, shape)
    print(
        f"decoding {len(new):,} images to {shape[1]}x{shape[2]}, once: {_cache_size(shape)} in {shown(folder)}",
        flush=True,
    )
    bad: dict[int, str] = {}
    with whole_file(file) as temporary, temporary.open("wb") as stream:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(stream, header)
        decoded = _decoded(catalog, pipelines, new, workers)
        for row in range(len(catalog)):
            old = known.get(digests[row].tobytes())
            if old is None:
                pixels, error = next(decoded)
            else:
                assert kept is not None
                pixels, error = kept[old], errors.get(old)
            if error is not None:
                bad[row] = error
            stream.write(pixels.tobytes())
        # The index first: a file with pixels always has one.
        with whole_file(file.with_suffix(".npz")) as index, index.open("wb") as written:
            np.savez(written, digests=digests, errors=np.array(json.dumps(bad)))
    former.sort(key=lambda other: other.stat().st_mtime_ns)
    for other in former[:-1]:  # the newest stays: two tables of one folder may take turns
        other.unlink(missing_ok=True)
        other.with_suffix(".npz").unlink(missing_ok=True)


def _decoded(
    catalog: Catalog, pipelines: Pipelines, rows: list[int], workers: int
) -> Iterator[tuple[Pixels, str | None]]:
    """Decoded images in the order of ``rows``, black with what was wrong where one cannot be read."""
    own = threading.local()  # a pipeline keeps what it is doing in itself
    recipe = A.to_dict(pipelines.head)
    shape = (pipelines.height, pipelines.width, 3)

    def look(row: int) -> tuple[Pixels, str | None]:
        if not hasattr(own, "head"):
            own.head = A.from_dict(recipe)
        try:
            pixels: Pixels = own.head(image=decode(catalog.root / str(catalog.paths[row])))["image"]
        except UnreadableImage as error:
            return np.zeros(shape, np.uint8), str(error)
        return pixels, None

    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # its own would fight ours for the cores
    pool = ThreadPoolExecutor(workers)
    try:
        with tqdm(total=len(rows), desc="decoding", unit="image", disable=None) as bar:
            for start in range(0, len(rows), BLOCK):
                for found in pool.map(look, rows[start : start + BLOCK]):
                    bar.update()
                    yield found
    finally:
        pool.shutdown(cancel_futures=True)
        cv2.setNumThreads(threads)


def _in_ram(
    catalog: Catalog, pipelines: Pipelines, workers: int, shape: tuple[int, ...], made: PixelCache | None
) -> PixelCache:
    available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else None
    if available is not None and int(np.prod(shape)) > available // 2:
        raise UserError(
            f"data.cache=ram: the decoded images take {_cache_size(shape)}, more than half of this machine's memory\n"
            "use data.cache=on (a file), or smaller images (transforms.height, transforms.width)"
        )
    if made is not None:
        return PixelCache(np.array(made.pixels), made.errors)
    print(f"decoding {shape[0]:,} images to {shape[1]}x{shape[2]} in memory: {_cache_size(shape)}", flush=True)
    pixels, errors = np.empty(shape, np.uint8), {}
    for row, (image, error) in enumerate(_decoded(catalog, pipelines, list(range(len(catalog))), workers)):
        pixels[row] = image
        if error is not None:
            errors[row] = error
    return PixelCache(pixels, errors)


def _open(file: Path, shape: tuple[int, ...]) -> PixelCache | None:
    """The cache that a file holds; None where it is not there, or damaged."""
    index = _index(file)
    if index is None:
        return None
    try:
        pixels = np.load(file, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return None
    return PixelCache(pixels, index[1], file) if pixels.shape == shape and pixels.dtype == np.uint8 else None


def _index(file: Path) -> tuple[Digests, dict[int, str]] | None:
    """Digests of the rows, and the rows that could not be read."""
    try:
        with np.load(file.with_suffix(".npz")) as index:
            errors = json.loads(str(index["errors"]))
            return np.asarray(index["digests"]), {int(row): text for row, text in errors.items()}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _reusable(former: list[Path], shape: tuple[int, ...]) -> tuple[dict[bytes, int], dict[int, str], Pixels | None]:
    """Row of each digest in the newest former file that is whole, its errors, and its pixels."""
    for file in sorted(former, key=lambda path: path.stat().st_mtime_ns, reverse=True):
        index = _index(file)
        if index is not None:
            made = _open(file, (len(index[0]), *shape[1:]))
            if made is not None:
                return {digest.tobytes(): row for row, digest in enumerate(index[0])}, index[1], made.pixels
    return {}, {}, None


def _state_of_files(catalog: Catalog) -> Digests:
    """(N, 16) a hash of each file's name, size and time of change."""
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
            "make room, name another folder (data.cache_dir=DIR), or go without: data.cache=off"
        )


def _cache_size(shape: tuple[int, ...]) -> str:
    return byte_size(int(np.prod(shape)))


def _hexdigest(state: str | bytes) -> str:
    return hashlib.sha256(state if isinstance(state, bytes) else state.encode()).hexdigest()[:12]
