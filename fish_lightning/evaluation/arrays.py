"""What every statistic here does with its arrays first: check them, index photographs, turn logits into probabilities.

A photograph is the group of images that are copies of one photograph. Copies succeed and fail together, so photographs,
not images, are what intervals count.
"""

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fish_lightning.errors import UserError

Bools: TypeAlias = npt.NDArray[np.bool_]
Floats: TypeAlias = npt.NDArray[np.floating[Any]]
Ints: TypeAlias = npt.NDArray[np.integer[Any]]
Names: TypeAlias = npt.NDArray[np.str_]

#: What NaN and infinite values mean, and what to do.
DIVERGED = "the model diverged in training: train it again with a lower optimizer.lr or with gradient clipping"


def photograph_index(photographs: Names | Ints | None, images: int) -> Ints:
    """Number the photographs.

    Args:
        photographs: (N,) each image's photograph; None where photographs are not known: then every image is its own.
        images: N.

    Returns:
        (N,) index of each image's photograph, 0 to the number of photographs - 1, in sorted order of their names.

    Raises:
        UserError: there are no images.
        ValueError: the length of ``photographs`` is not N.
    """
    if images == 0:
        raise UserError("there are no images to evaluate: the subset is empty")
    if photographs is None:
        return np.arange(images)
    if len(photographs) != images:
        raise ValueError(f"{len(photographs)} photographs for {images} images")
    return np.unique(photographs, return_inverse=True)[1].reshape(images)


def equal_weights(index: Ints) -> npt.NDArray[np.float64]:
    """Return (N,) weights that sum to 1, the same for every photograph and shared equally by its copies."""
    sizes = np.bincount(index)
    return np.asarray(1 / (len(sizes) * sizes[index]), dtype=np.float64)


def require_finite(values: Floats, what: str) -> None:
    """Refuse NaN and infinite values.

    Args:
        values: (N,) or (N, D), a row for each image.
        what: what they are, for the message: ``logits``.

    Raises:
        UserError: names how many images are concerned.
    """
    bad = int((~np.isfinite(values).reshape(len(values), -1).all(axis=1)).sum())
    if bad:
        raise UserError(f"{bad} of {len(values)} images have NaN or infinite {what}\n{DIVERGED}")


def log_softmax(logits: Floats) -> npt.NDArray[np.float64]:
    """Return log-probabilities of (N, C) logits, (N, C) in float64: float32 rounds confident answers to exactly 1."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def softmax(logits: Floats) -> npt.NDArray[np.float64]:
    """Return probabilities of (N, C) logits, (N, C) in float64."""
    return np.exp(log_softmax(logits))
