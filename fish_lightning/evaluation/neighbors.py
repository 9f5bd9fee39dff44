"""The nearest training photographs of an image, by cosine in feature space."""

import numpy as np
import numpy.typing as npt

from fish_lightning.evaluation.arrays import Floats, Ints, Names, photograph_index, require_finite

QUERIES, KEYS = 512, 8192  # images compared at a time: 16 MiB of similarities
SHORTEST = 1e-12  # length that a feature vector is divided by at least


def nearest_photographs(
    queries: Floats, training: Floats, photographs: Names | None = None, k: int = 3
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Find the k nearest training images of each query, at most one from each photograph.

    Compared in blocks, so that memory stays flat in the number of images. Exact, no approximate index.

    Args:
        queries: (Q, D) features, float16 or wider.
        training: (N, D) features of training images.
        photographs: (N,) photograph of each training image; None where they are not known.
        k: number of neighbors.

    Returns:
        (Q, k) indices into ``training``, nearest first, -1 where there are fewer photographs than k; and (Q, k) cosine
        similarities, -1 to 1, -inf there. A feature vector of zeros has similarity 0 with everything.

    Raises:
        UserError: there are no training images, or features are NaN or infinite.
    """
    index = photograph_index(photographs, len(training))
    require_finite(queries, "features")
    require_finite(training, "features")
    nearest = np.full((len(queries), k), -1)
    similarity = np.full((len(queries), k), -np.inf)
    for key in range(0, len(training), KEYS):
        keys = unit_length(training[key : key + KEYS])
        owners = index[key : key + KEYS]
        for start in range(0, len(queries), QUERIES):
            block = slice(start, start + QUERIES)
            best, cosine = _top(unit_length(queries[block]) @ keys.T, owners, k)
            nearest[block], similarity[block] = _merge(
                np.hstack([nearest[block], np.where(best < 0, -1, best + key)]),
                np.hstack([similarity[block], cosine]),
                index,
            )
    return nearest, similarity


def unit_length(features: Floats) -> npt.NDArray[np.float32]:
    """Return features (N, D), each of length 1; of length 0 where all are 0."""
    wide = features.astype(np.float32)
    return np.asarray(wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), SHORTEST), dtype=np.float32)


def _top(similarity: npt.NDArray[np.float32], owners: Ints, k: int) -> tuple[Ints, Floats]:
    """Return (Q, k) columns of the highest similarities and these, one per photograph; overwrites ``similarity``."""
    rows = np.arange(len(similarity))
    columns, cosines = np.full((len(rows), k), -1), np.full((len(rows), k), -np.inf)
    for place in range(min(k, len(np.unique(owners)))):
        best = similarity.argmax(axis=1)
        columns[:, place], cosines[:, place] = best, similarity[rows, best]
        similarity[owners[None, :] == owners[best][:, None]] = -np.inf
    return columns, cosines


def _merge(candidates: Ints, similarity: Floats, index: Ints) -> tuple[Ints, Floats]:
    """Keep the better half of (Q, 2k) candidates, one from each photograph; -1 is no candidate."""
    order = np.argsort(-similarity, axis=1, kind="stable")
    candidates, similarity = np.take_along_axis(candidates, order, 1), np.take_along_axis(similarity, order, 1)
    owners = index[candidates]
    same = np.tril(owners[:, :, None] == owners[:, None, :], k=-1)  # (Q, later, earlier)
    similarity[same.any(axis=2)] = -np.inf
    order = np.argsort(-similarity, axis=1, kind="stable")[:, : candidates.shape[1] // 2]
    candidates, similarity = np.take_along_axis(candidates, order, 1), np.take_along_axis(similarity, order, 1)
    return np.where(np.isneginf(similarity), -1, candidates), similarity
