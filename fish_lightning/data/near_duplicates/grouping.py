"""Join copies into groups: choose candidate pairs by nearest signatures, compare each pair, unite the copies.

Candidates are the nearest neighbors of each image first, then of each group.

Two shots of an unchanged scene, taken moments apart, leak as copies do. They differ in a few neighborhoods (a date
stamp in another place) and stay together too, but never more than ``SHOTS`` of them, so that the frames of a camera on
a tripod do not become one group.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from fish_lightning.data.near_duplicates.similarity import Features, Similarity, compare

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Pair = tuple[int, int]

#: Nearest signatures compared with each image; every image of the fish archive has a copy among its first 5.
NEIGHBORS = 30
#: Nearest groups compared with each group: a photograph's copies can form two sets of mutual neighbors (8 and 12 of a
#: gilt-head bream), since resizing to a square turns a circle into an ellipse.
NEAR_GROUPS = 10
#: Pairs compared between two groups before these count as different for good; enough for all 26,381 pairs of copies.
TRIES = 3
#: Members of a group among which the nearest pairs are chosen: all pairs of two large groups are too many.
MEMBERS = 64
#: Maximum number of photographs of one scene that stay together; the fish archive has two at most.
SHOTS = 4


def group_copies(features: Features, pool: ThreadPoolExecutor) -> Ints:
    """Group images that are copies of one photograph.

    Exact copies come first, then neighbors from the nearest on, then groups, and shots of one scene last.

    Args:
        features: features of N images.
        pool: threads that compare pairs.

    Returns:
        (N,) group of each image: the index of its first image. An unreadable image is alone.
    """
    groups = Groups(features, pool)
    readable = np.flatnonzero([bool(digest) for digest in features.digests])
    first_with: dict[bytes, int] = {}
    for i in readable.tolist():
        groups.unite((first_with.setdefault(features.digests[i], i), i))
    signatures = _standardized(features.signatures[readable])
    nearest = readable[_nearest(signatures, NEIGHBORS)]
    for rank in tqdm(range(nearest.shape[1]), desc="comparing neighbors", unit="round", disable=None):
        groups.compare(zip(readable.tolist(), nearest[:, rank].tolist(), strict=True))
    united = 1
    while united:
        members = _members(np.array([groups.of(i) for i in readable.tolist()], dtype=np.int64))
        pairs = _pairs_between_near_groups(members, signatures)
        united = groups.compare((int(readable[a]), int(readable[b])) for a, b in pairs)
    groups.unite_shots_of_a_scene()
    return np.array([groups.of(i) for i in range(len(features))], dtype=np.int64)


class Groups:
    """Groups of images (a union-find forest), and the pairs that were found different.

    Args:
        features: features of N images.
        pool: threads that compare pairs.
    """

    def __init__(self, features: Features, pool: ThreadPoolExecutor) -> None:
        self.features, self.pool = features, pool
        self.parents = list(range(len(features)))
        self.different: dict[Pair, Similarity] = {}

    def of(self, i: int) -> int:
        """Return the group of image ``i``: the index of its first image."""
        while self.parents[i] != i:
            self.parents[i] = i = self.parents[self.parents[i]]
        return i

    def of_pair(self, pair: Pair) -> Pair:
        """Return the groups of two images, the smaller index first."""
        first, second = sorted((self.of(pair[0]), self.of(pair[1])))
        return first, second

    def unite(self, pair: Pair) -> None:
        """Unite the groups of two images."""
        first, second = self.of_pair(pair)
        self.parents[second] = first

    def compare(self, pairs: Iterable[Pair]) -> int:
        """Compare the pairs that may still unite two groups, unite the copies, and return how many there were."""
        failures = Counter(self.of_pair(pair) for pair in self.different)
        chosen = []
        for pair in sorted({(min(pair), max(pair)) for pair in pairs}):
            groups = self.of_pair(pair)
            if groups[0] != groups[1] and pair not in self.different and failures[groups] < TRIES:
                failures[groups] += 1
                chosen.append(pair)
        found = list(self.pool.map(lambda pair: compare(self.features, *pair), chosen))
        for pair, similarity in zip(chosen, found, strict=True):
            if similarity.is_copy:
                self.unite(pair)
            else:
                self.different[pair] = similarity
        return sum(similarity.is_copy for similarity in found)

    def unite_shots_of_a_scene(self) -> None:
        """Unite photographs of an unchanged scene, the most similar first, at most ``SHOTS`` of them."""
        scenes = [(-found.correlation, pair) for pair, found in self.different.items() if found.is_same_scene]
        shots = Counter({self.of(i): 1 for i in range(len(self.parents))})
        for _, pair in sorted(scenes):
            first, second = self.of_pair(pair)
            if first != second and shots[first] + shots[second] <= SHOTS:
                self.unite(pair)
                shots[first] += shots[second]


def _pairs_between_near_groups(members: list[Ints], signatures: Floats) -> Iterator[Pair]:
    """Yield, for each group and those of nearest mean signature, the ``TRIES`` pairs of nearest signatures."""
    means = np.array([signatures[indices].mean(axis=0) for indices in members], dtype=np.float32)
    for number, near in enumerate(_nearest(means, NEAR_GROUPS)):
        for other in near:
            a, b = _sample(members[number]), _sample(members[other])
            distances = ((signatures[a][:, None] - signatures[b][None]) ** 2).sum(axis=2)
            for flat in np.argsort(distances, axis=None, kind="stable")[:TRIES].tolist():
                yield int(a[flat // len(b)]), int(b[flat % len(b)])


def _sample(indices: Ints) -> Ints:
    """Return at most ``MEMBERS`` of the indices, evenly spaced."""
    return indices if len(indices) <= MEMBERS else indices[np.linspace(0, len(indices) - 1, MEMBERS).astype(np.int64)]


def _members(groups: Ints) -> list[Ints]:
    order = np.argsort(groups, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(groups[order])) + 1) if len(order) else []


def _standardized(signatures: Floats) -> Floats:
    if not len(signatures):
        return signatures
    centered = signatures - signatures.mean(axis=0)
    return np.asarray(centered / np.maximum(centered.std(axis=0), 1e-3), dtype=np.float32)


def _nearest(points: Floats, k: int) -> Ints:
    """Return the (N, at most k) indices of the nearest other points of each point, nearest first.

    Computes all N² distances, in blocks: 0.3 s for 4,000 images, 5 s for 20,000, so about 2 minutes for 100,000.
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
