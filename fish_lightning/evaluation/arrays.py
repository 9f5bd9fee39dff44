"""What every statistic here does with its arrays first: check them, index photographs, turn logits into probabilities.

A photograph is the group of images that are copies of one photograph. Copies succeed and fail together, so photographs,
not images, are what intervals count.
"""

import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fish_lightning.errors import UserError, first_line
from fish_lightning.files import atomic_write, shown

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
        images: number of images N.

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


def copies_before(groups: Names | Ints) -> npt.NDArray[np.int64]:
    """Return the (N,) number of earlier entries in the same group: 0 for the first copy of a photograph."""
    order = np.argsort(groups, kind="stable")
    sizes = np.unique(groups, return_counts=True)[1]
    before = np.empty(len(order), np.int64)
    before[order] = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return before


def equal_weights(index: Ints) -> npt.NDArray[np.float64]:
    """Return (N,) weights that sum to 1, equal for all photographs and shared equally among the copies of each."""
    sizes = np.bincount(index)
    return np.asarray(1 / (len(sizes) * sizes[index]), dtype=np.float64)


def require_finite(values: Floats, what: str) -> None:
    """Refuse NaN and infinite values.

    Args:
        values: (N,) or (N, D) values, a row for each image.
        what: name of the values in the error message, such as ``logits``.

    Raises:
        UserError: there are such values; the message says in how many images.
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


def save_arrays(file: Path, arrays: Mapping[str, Any]) -> None:
    """Write named arrays to a compressed ``.npz`` file, atomically."""
    with atomic_write(file) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, **arrays)


def corrupt(file: Path, why: str) -> UserError:
    """Return the error for a file that cannot be read."""
    return UserError(f"{shown(file)} is corrupt or incomplete ({why})")


@contextmanager
def stored_arrays(
    file: Path, error: Callable[[Path, str], UserError] = corrupt
) -> Iterator[Mapping[str, npt.NDArray[Any]]]:
    """Open what :func:`save_arrays` wrote; nothing in it is executed.

    Args:
        file: the ``.npz`` file.
        error: function that returns the error to raise where the file, or an array that the block asks for, is missing
            or corrupt.
    """
    try:
        with np.load(file, allow_pickle=False) as stored:
            yield stored
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as raised:
        raise error(file, first_line(raised)) from None
