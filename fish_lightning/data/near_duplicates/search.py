"""Which images are copies of one photograph: the rows that a split must keep together.

A copy may be re-encoded, resized (also squashed to another aspect), flipped, turned by any angle with black corners,
cropped by that, or a little brighter. The nearest signatures, first of images, then of groups, are candidates;
:mod:`fish_lightning.data.near_duplicates.similarity` looks at each pair of them; copies are united.

Two pictures of an untouched scene, taken moments apart, leak as copies do. They differ in few neighbourhoods (a date
stamp that stands elsewhere) and are kept together too, but never more than ``SHOTS`` of them, so that the frames of a
camera on a tripod do not become one group.

Threads do the work, since OpenCV releases the interpreter's lock: nothing has to survive a fork or a spawn.
"""

import hashlib
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from fish_lightning.data.catalog import Catalog, named_photographs
from fish_lightning.data.near_duplicates.similarity import Likeness, Views, compare
from fish_lightning.errors import UserError
from fish_lightning.files import state_of, whole_file
from fish_lightning.hardware import cores

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Pair = tuple[int, int]

#: Part of the cache's key: raise it with every change here or in ``likeness.py`` that can change a result.
VERSION = 2

#: Nearest signatures looked at for an image; every image of ../shared/fish has a copy among its first 5.
NEIGHBOURS = 30
#: Nearest groups looked at for a group: a photograph's copies can fall into two sets, each other's nearest (8 and 12 of
#: a gilt-head bream), since the squashed canvas turns a circle into an ellipse.
NEAR_GROUPS = 10
#: Pairs looked at between two groups before they are different for good; of 26,381 pairs of copies none was missed.
TRIES = 3
#: Members of a group that are looked at for the nearest pairs to another: all pairs of two large groups are too many.
MEMBERS = 64
#: Photographs of one scene that are kept together at most; ../shared/fish has no more than two of any.
SHOTS = 4


def find_photographs(files: Sequence[Path], cache: Path | None, workers: int) -> Ints:
    """Number the photograph that each image is a copy of.

    The result does not depend on ``workers``, nor, but for the numbering, on the order of ``files``. A file that cannot
    be read is a photograph of its own; who trains on it reports it.

    Args:
        files: N image files.
        cache: file that keeps the result while paths, sizes and times of change stay the same; None keeps nothing.
        workers: threads, 1 or more; each takes a core.

    Returns:
        (N,) numbers from 0, in order of first appearance.

    Raises:
        OSError: no room for the views (100 KB an image, in the cache's folder or the system's for temporary files).
    """
    order = sorted(range(len(files)), key=lambda i: files[i].absolute())
    ordered = [files[i] for i in order]
    key = _state_of_files(ordered)
    found = _read_cache(cache, key) if cache is not None else None
    if found is None:
        with _threads(workers) as pool:
            found = _group(_look_at(ordered, cache, pool), pool)
        if cache is not None:
            _write_cache(cache, key, found)
    groups = np.empty(len(files), dtype=np.int64)
    groups[order] = found
    return _number_by_appearance(groups)


def with_photographs(catalog: Catalog, pattern: str | None, find_copies: bool, cache: str | Path | None) -> Catalog:
    """The catalog with its photographs: as a pattern says, as the source knows, or as they are found.

    A photograph whose copies carry more than one label is said.

    Args:
        catalog: N images.
        pattern: see :func:`fish_lightning.data.catalog.named_photographs`; None: there is none.
        find_copies: look for copies where neither pattern nor source says which images are.
        cache: folder to keep what was found in; None: keep nothing.
    """
    if pattern is not None:
        return catalog.with_photographs(named_photographs(catalog, pattern))
    if not catalog.photographs_known and not find_copies:
        return catalog
    if not catalog.photographs_known:
        files = [catalog.root / path for path in catalog.paths.tolist()]
        try:
            groups = find_photographs(files, cache_file(cache, catalog.root), cores())
        except OSError as error:
            raise UserError(
                f"data.cache_dir: what is found about copies cannot be kept in {cache} ({error.strerror or error})\n"
                "make room, or name another folder: data.cache_dir=DIR"
            ) from None
        catalog = catalog.with_photographs(photograph_names(catalog.paths.tolist(), groups))
    for rows in label_errors(catalog.labels, photograph_numbers(catalog))[:5]:
        kinds = ", ".join(f"{catalog.paths[row]}" for row in rows[:3])
        print(f"note: copies of one photograph under more than one label: {kinds}", flush=True)
    return catalog


def photograph_numbers(catalog: Catalog) -> Ints:
    """(N,) a number for each image's photograph; an image whose photograph is not known has one of its own."""
    return np.asarray(np.unique(catalog.photographs_or_paths, return_inverse=True)[1], dtype=np.int64)


def cache_file(cache: str | Path | None, *folders: Path) -> Path | None:
    """Where the photographs found among the images of these folders are kept."""
    name = hashlib.sha256("\0".join(str(folder.resolve()) for folder in folders).encode()).hexdigest()[:16]
    return None if cache is None else Path(cache) / f"photographs-{name}.npz"


def photograph_names(paths: Sequence[str], groups: Ints) -> npt.NDArray[np.str_]:
    """Name each image's photograph by the first of its paths, in the order of the alphabet.

    Args:
        paths: N paths.
        groups: (N,) numbers of :func:`find_photographs`.

    Returns:
        (N,) text.
    """
    first: dict[int, str] = {}
    for path, group in zip(paths, groups.tolist(), strict=True):
        first[group] = min(path, first.get(group, path))
    return np.array([first[group] for group in groups.tolist()], dtype=np.str_)


def label_errors(labels: Ints, groups: Ints) -> list[Ints]:
    """Photographs whose copies carry more than one label: at least one of the labels must be wrong.

    Args:
        labels: (N,) class numbers.
        groups: (N,) numbers of :func:`find_photographs`.

    Returns:
        For each such photograph the row numbers of all its copies, ascending.
    """
    pairs = np.unique(np.stack([groups, labels], axis=1), axis=0)
    numbers, kinds = np.unique(pairs[:, 0], return_counts=True)
    return [np.flatnonzero(groups == number) for number in numbers[kinds > 1]]


class Grouping:
    """Images united so far (a union-find forest), and the pairs that were found different.

    Args:
        views: of N images.
        pool: compares pairs.
    """

    def __init__(self, views: Views, pool: ThreadPoolExecutor) -> None:
        self.views, self.pool = views, pool
        self.parents = list(range(len(views)))
        self.different: dict[Pair, Likeness] = {}

    def group(self, i: int) -> int:
        """The group of image ``i``: the row number of its first image."""
        while self.parents[i] != i:
            self.parents[i] = i = self.parents[self.parents[i]]
        return i

    def groups(self, pair: Pair) -> Pair:
        """The groups of two images, the smaller number first."""
        first, second = sorted((self.group(pair[0]), self.group(pair[1])))
        return first, second

    def unite(self, pair: Pair) -> None:
        """Make one group of the groups of two images."""
        first, second = self.groups(pair)
        self.parents[second] = first

    def look_at(self, pairs: Iterable[Pair]) -> int:
        """Compare those pairs that may still unite two groups, and unite the copies.

        Returns:
            How many pairs were copies.
        """
        failures = Counter(self.groups(pair) for pair in self.different)
        chosen = []
        for pair in sorted({(min(pair), max(pair)) for pair in pairs}):
            groups = self.groups(pair)
            if groups[0] != groups[1] and pair not in self.different and failures[groups] < TRIES:
                failures[groups] += 1
                chosen.append(pair)
        found = list(self.pool.map(lambda pair: compare(self.views, *pair), chosen))
        for pair, alike in zip(chosen, found, strict=True):
            if alike.is_copy:
                self.unite(pair)
            else:
                self.different[pair] = alike
        return sum(alike.is_copy for alike in found)

    def unite_shots_of_a_scene(self) -> None:
        """Unite photographs of an untouched scene, the most alike first, at most ``SHOTS`` of them."""
        scenes = [(-alike.correlation, pair) for pair, alike in self.different.items() if alike.is_same_scene]
        shots = Counter({self.group(i): 1 for i in range(len(self.parents))})
        for _, pair in sorted(scenes):
            first, second = self.groups(pair)
            if first != second and shots[first] + shots[second] <= SHOTS:
                self.unite(pair)
                shots[first] += shots[second]


def _look_at(files: Sequence[Path], cache: Path | None, pool: ThreadPoolExecutor) -> Views:
    if cache is not None:
        cache.parent.mkdir(parents=True, exist_ok=True)
    print(f"looking for copies of one photograph among {len(files):,} images, once; they are remembered", flush=True)
    views = Views(len(files), cache.parent if cache is not None else None)
    done = pool.map(views.look_at, range(len(files)), files)
    for _ in tqdm(done, total=len(files), desc="looking for copies", unit="image", disable=None):
        pass  # disable=None: shown on a terminal only
    return views


def _group(views: Views, pool: ThreadPoolExecutor) -> Ints:
    """(N,) group of each image: exact copies first, then neighbours from the nearest on, groups, and scenes last."""
    grouping = Grouping(views, pool)
    readable = np.flatnonzero([bool(digest) for digest in views.digests])
    first_with: dict[bytes, int] = {}
    for i in readable.tolist():
        grouping.unite((first_with.setdefault(views.digests[i], i), i))
    signatures = _standardized(views.signatures[readable])
    nearest = readable[_nearest(signatures, NEIGHBOURS)]
    for rank in tqdm(range(nearest.shape[1]), desc="comparing the nearest", unit="round", disable=None):
        grouping.look_at(zip(readable.tolist(), nearest[:, rank].tolist(), strict=True))
    united = 1
    while united:
        members = _rows_of_groups(np.array([grouping.group(i) for i in readable.tolist()], dtype=np.int64))
        pairs = _pairs_between_near_groups(members, signatures)
        united = grouping.look_at((int(readable[a]), int(readable[b])) for a, b in pairs)
    grouping.unite_shots_of_a_scene()
    return np.array([grouping.group(i) for i in range(len(views))], dtype=np.int64)


def _pairs_between_near_groups(members: list[Ints], signatures: Floats) -> Iterator[Pair]:
    """For each group and those of nearest mean signature, the ``TRIES`` pairs of images of nearest signatures."""
    means = np.array([signatures[rows].mean(axis=0) for rows in members], dtype=np.float32)
    for number, near in enumerate(_nearest(means, NEAR_GROUPS)):
        for other in near:
            a, b = _some(members[number]), _some(members[other])
            distances = ((signatures[a][:, None] - signatures[b][None]) ** 2).sum(axis=2)
            for flat in np.argsort(distances, axis=None, kind="stable")[:TRIES].tolist():
                yield int(a[flat // len(b)]), int(b[flat % len(b)])


def _some(rows: Ints) -> Ints:
    """At most ``MEMBERS`` of the rows, evenly spaced."""
    return rows if len(rows) <= MEMBERS else rows[np.linspace(0, len(rows) - 1, MEMBERS).astype(np.int64)]


def _rows_of_groups(groups: Ints) -> list[Ints]:
    order = np.argsort(groups, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(groups[order])) + 1) if len(order) else []


def _standardized(signatures: Floats) -> Floats:
    if not len(signatures):
        return signatures
    centred = signatures - signatures.mean(axis=0)
    return np.asarray(centred / np.maximum(centred.std(axis=0), 1e-3), dtype=np.float32)


def _nearest(points: Floats, k: int) -> Ints:
    """(N, at most k) row numbers of the nearest other points of each, nearest first.

    All N² distances, in blocks of rows: 0.3 s for 4,000 images, 5 s for 20,000, so some 2 minutes for 100,000.
    """
    n, block = len(points), 512
    k = min(k, n - 1)
    if k < 1:
        return np.empty((n, 0), dtype=np.int64)
    squares = (points**2).sum(axis=1)
    found = []
    for start in range(0, n, block):
        rows = np.arange(start, min(start + block, n))
        distances = squares - 2 * points[rows] @ points.T
        distances[rows - start, rows] = np.inf
        near = np.argpartition(distances, k - 1, axis=1)[:, :k]
        order = np.argsort(np.take_along_axis(distances, near, axis=1), axis=1, kind="stable")
        found.append(np.take_along_axis(near, order, axis=1))
    return np.concatenate(found)


@contextmanager
def _threads(workers: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that each take a core: OpenCV's own would fight them for it."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    pool = ThreadPoolExecutor(workers)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C waits for what has begun, not for all that was asked for
        cv2.setNumThreads(before)


def _number_by_appearance(groups: Ints) -> Ints:
    numbers: dict[int, int] = {}
    return np.array([numbers.setdefault(group, len(numbers)) for group in groups.tolist()], dtype=np.int64)


def _state_of_files(files: Sequence[Path]) -> str:
    """Return a hash of the files' paths, sizes and times of change, and of the way they are compared."""
    state = hashlib.sha256(f"{VERSION} {cv2.__version__}".encode())
    for file in files:
        state.update(f"{state_of(str(file.absolute()), str(file))}\0".encode(errors="surrogateescape"))
    return state.hexdigest()


def _read_cache(cache: Path, key: str) -> Ints | None:
    """The groups kept for these very files; None if there are none or the file is damaged."""
    try:
        with np.load(cache) as kept:
            return np.asarray(kept["groups"], dtype=np.int64) if str(kept["key"]) == key else None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None


def _write_cache(cache: Path, key: str, groups: Ints) -> None:
    with whole_file(cache) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, key=np.array(key), groups=groups)
