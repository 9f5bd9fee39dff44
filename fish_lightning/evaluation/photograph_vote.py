"""Scores by photograph: the vote of its copies, and precision, recall and F1 of each class with their intervals."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fish_lightning.evaluation.arrays import Bools, Floats, Ints, Names, photograph_index, require_finite
from fish_lightning.evaluation.bootstrap import per_photograph, ratio_interval, wilson_interval


@dataclass(frozen=True)
class PhotographMeans:
    """Mean probabilities of each photograph's copies, V entries.

    Copies that are labeled differently are kept apart: an entry is a photograph with a label.

    Attributes:
        probabilities: (V, C).
        labels: (V,).
        index: (N,) each image's entry, 0 to V - 1.
    """

    probabilities: npt.NDArray[np.float64]
    labels: Ints
    index: Ints


def mean_by_photograph(probabilities: Floats, labels: Ints, photographs: Names | None = None) -> PhotographMeans:
    """Average the probabilities of each photograph's copies.

    Args:
        probabilities: (N, C).
        labels: (N,).
        photographs: (N,) each image's photograph; None where they are not known.

    Raises:
        UserError: there are no images, or probabilities are NaN or infinite.
    """
    photograph = photograph_index(photographs, len(labels))
    require_finite(probabilities, "probabilities")
    classes = probabilities.shape[1]
    entries, index = np.unique(photograph * classes + labels, return_inverse=True)
    sums = np.zeros((len(entries), classes))
    np.add.at(sums, index, probabilities)
    return PhotographMeans(sums / np.bincount(index)[:, None], entries % classes, index.reshape(len(labels)))


def vote_scores(probabilities: Floats, labels: Ints, photographs: Names | None = None) -> dict[str, Any]:
    """Compute the accuracy by photograph: its copies vote with the mean of their probabilities.

    Args:
        probabilities: (N, C).
        labels: (N,).
        photographs: (N,) each image's photograph; None where they are not known.

    Returns:
        ``accuracy``, ``accuracy_ci95`` (Wilson: photographs are independent) and ``photographs``.

    Raises:
        UserError: there are no images, or probabilities are NaN or infinite.
    """
    means = mean_by_photograph(probabilities, labels, photographs)
    right, n = int((means.probabilities.argmax(axis=1) == means.labels).sum()), len(means.labels)
    return {"accuracy": right / n, "accuracy_ci95": list(wilson_interval(right, n)), "photographs": n}


def class_scores(
    preds: Ints, labels: Ints, num_classes: int, photographs: Names | None = None, resamples: int = 4000
) -> list[dict[str, Any]]:
    """Compute precision, recall and F1 of each class, each with its 95 % interval clustered by photograph.

    Args:
        preds: (N,) predicted classes.
        labels: (N,) true classes.
        num_classes: C.
        photographs: (N,) each image's photograph; None where they are not known.
        resamples: number of draws.

    Returns:
        A dict for each class: ``precision``, ``recall``, ``f1`` and each with ``_ci95``, ``n`` (images of the class)
        and ``photographs``. What has a denominator of 0 is None: precision of a class never predicted, recall of a
        class without images.

    Raises:
        UserError: there are no images.
    """
    index = photograph_index(photographs, len(labels))
    return [_class_score(preds == label, labels == label, index, resamples) for label in range(num_classes)]


def _class_score(predicted: Bools, actual: Bools, index: Ints, resamples: int) -> dict[str, Any]:
    hits, positives, members = per_photograph(index, predicted & actual, predicted, actual).T
    score: dict[str, Any] = {"n": int(actual.sum()), "photographs": int(np.count_nonzero(members))}
    ratios = {"precision": (hits, positives), "recall": (hits, members), "f1": (2 * hits, positives + members)}
    for name, (part, whole) in ratios.items():
        score[name] = float(part.sum() / whole.sum()) if whole.any() else None
        score[f"{name}_ci95"] = list(ratio_interval(part, whole, resamples)) if whole.any() else None
    return score
