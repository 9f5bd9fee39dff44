"""The nearest training photographs of an image, by cosine in feature space."""

import numpy as np
import numpy.typing as npt

from fish_lightning.evaluation.arrays import Floats, Ints, Names, photograph_index, require_finite

QUERIES, BLOCK = 512, 1 << 22  # at most so many queries, and similarities (16 MiB), at a time
SHORTEST = 1e-12  # length that a feature vector is divided by at least


def nearest_photographs(
    queries: Floats, training: Floats, photographs: Names | None = None, k: int = 3
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Find the k nearest training images of each query, at most one from each photograph.

    Queries are compared in blocks, so that memory does not grow with their number. The search is exact, without an
    approximate index.

    Args:
        queries: (Q, D) features, float16 or wider.
        training: (N, D) features of training images.
        photographs: (N,) photograph of each training image; None where they are not known.
        k: number of neighbors.

    Returns:
        (Q, k) indices into ``training``, nearest first, -1 where there are fewer photographs than k; and (Q, k) cosine
        similarities, -1 to 1, -inf where there are fewer. A feature vector of zeros has similarity 0 with everything.

    Raises:
        UserError: there are no training images, or features are NaN or infinite.
    """
    index = photograph_index(photographs, len(training))
    require_finite(queries, "features")
    require_finite(training, "features")
    keys = unit_length(training)
    nearest = np.full((len(queries), k), -1)
    similarity = np.full((len(queries), k), -np.inf)
    size = min(QUERIES, max(1, BLOCK // len(keys)))
    for block in (slice(start, start + size) for start in range(0, len(queries), size)):
        _find(unit_length(queries[block]) @ keys.T, index, nearest[block], similarity[block])
    return nearest, similarity


def _find(cosine: npt.NDArray[np.float32], index: Ints, nearest: Ints, similarity: Floats) -> None:
    """Fill (B, k) with columns and values of the highest cosines (B, N), one per photograph; changes ``cosine``."""
    rows = np.arange(len(cosine))
    for place in range(min(nearest.shape[1], int(index.max()) + 1)):
        best = cosine.argmax(axis=1)
        nearest[:, place], similarity[:, place] = best, cosine[rows, best]
        cosine[index == index[best][:, None]] = -np.inf


def unit_length(features: Floats) -> npt.NDArray[np.float32]:
    """Return features (N, D) scaled to length 1; vectors of zeros stay zero."""
    wide = features.astype(np.float32)
    return np.asarray(wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), SHORTEST), dtype=np.float32)
