"""Test scores: accuracy and its confidence intervals, the vote of copies, scores per class, confusion matrix."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fish_lightning.data.catalog import Catalog
from fish_lightning.errors import UserError
from fish_lightning.evaluation.arrays import DIVERGED, Bools, Floats, Ints, Names, photograph_index, require_finite
from fish_lightning.evaluation.bootstrap import per_photograph, ratio_interval, wilson_interval
from fish_lightning.evaluation.outputs import Classified, Predictions

MAX_MATRIX_CLASSES = 100  # classes whose confusion matrix is part of summary.json


def photograph_interval(correct: Bools, photographs: Names | Ints, resamples: int = 4000) -> tuple[float, float]:
    """Return the 95 % CI of the accuracy clustered by photograph: predictions for copies are not independent.

    A cluster bootstrap with a fixed seed: photographs are resampled with replacement, and the bounds are the 2.5 and
    97.5 % quantiles of the accuracy. If all images are right, or all wrong, a bootstrap has no spread; then Wilson's
    interval with one trial per photograph is returned.

    Args:
        correct: (N,) whether each prediction is correct.
        photographs: (N,) name or number of each image's photograph.
        resamples: number of bootstrap samples.

    Returns:
        Lower and upper bound, 0 to 1.

    Source: A. C. Davison and D. V. Hinkley, Bootstrap Methods and their Application (1997), section 3.8.
    """
    index = photograph_index(photographs, len(correct))
    right, images = per_photograph(index, correct, np.ones(len(correct))).T
    return ratio_interval(right, images, resamples)


def score_test(
    predictions: Predictions, catalog: Catalog, class_names: Sequence[str], logged: dict[str, Any]
) -> dict[str, Any]:
    """Return the ``test`` block of ``summary.json``.

    Args:
        predictions: predictions for all test images.
        catalog: catalog that contains the images.
        class_names: class names in label order.
        logged: the trainer's ``callback_metrics`` after the test: ``test/loss`` and ``test/macro_f1``.

    Returns:
        Scores of :func:`accuracy_scores`, ``macro_f1``, ``loss``, ``per_class`` (precision, None for a class never
        predicted, recall, None for a class without images, and n) and ``confusion_matrix`` (rows: true classes,
        columns: predicted classes, in the order of ``per_class``; None above ``MAX_MATRIX_CLASSES`` classes, whose
        matrix is in ``confusion_matrix.csv`` only).

    Raises:
        UserError: logits or loss are NaN or infinite.
    """
    require_finite(predictions.logits, "logits")
    if not math.isfinite(logged["test/loss"]):
        raise UserError(f"the test loss is {float(logged['test/loss'])}\n{DIVERGED}")
    matrix = confusion_matrix(predictions, len(class_names))
    per_class = zip(
        class_names, matrix.diagonal().tolist(), matrix.sum(0).tolist(), matrix.sum(1).tolist(), strict=True
    )
    photographs = catalog.photographs_or_paths[predictions.indices] if catalog.photographs_known else None
    leaked = catalog.leaked()[predictions.indices] if catalog.photographs_known else None
    return accuracy_scores(predictions.correct, photographs, leaked) | {
        "macro_f1": float(logged["test/macro_f1"]),
        "loss": float(logged["test/loss"]),
        "per_class": {
            name: {"precision": hits / of_pred if of_pred else None, "recall": hits / of if of else None, "n": of}
            for name, hits, of_pred, of in per_class
        },
        "confusion_matrix": matrix.tolist() if len(matrix) <= MAX_MATRIX_CLASSES else None,
    }


def confusion_matrix(predictions: Classified, classes: int) -> npt.NDArray[np.int64]:
    """Return (C, C) counts; rows are true classes, columns predicted classes."""
    cells = np.bincount(predictions.labels * classes + predictions.preds, minlength=classes**2)
    return np.asarray(cells, np.int64).reshape(classes, classes)


def most_confused(matrix: Ints, most: int) -> Ints:
    """Return the sorted indices of at most ``most`` classes, those with the most confusions in (C, C) counts."""
    mistakes = matrix.sum(axis=0) + matrix.sum(axis=1) - 2 * matrix.diagonal()
    return np.sort(np.argsort(-mistakes, kind="stable")[:most])


def accuracy_of(correct: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """Return ``accuracy``, ``accuracy_ci95`` (Wilson) and ``n`` of N predictions; only ``n`` if N is 0."""
    n, right = len(correct), int(correct.sum())
    return {"accuracy": right / n, "accuracy_ci95": list(wilson_interval(right, n)), "n": n} if n else {"n": 0}


def accuracy_scores(correct: Bools, photographs: Names | None, leaked: Bools | None) -> dict[str, Any]:
    """Compute the accuracy of a test and its intervals.

    Args:
        correct: (N,) whether each prediction is correct; N is 1 or more.
        photographs: (N,) each image's photograph; None where they are not known.
        leaked: (N,) whether a copy of an image is among the training images; None where unknown.

    Returns:
        ``accuracy``, ``accuracy_ci95`` (Wilson, for independent images), ``n``, ``accuracy_ci95_photographs``
        (clustered by photograph; None if photographs are unknown), ``photographs`` (their number),
        ``leaked_test_images`` (number with a copy in training) and ``without_leaked`` (``accuracy``, ``accuracy_ci95``
        and ``n`` of the others; None without leaked ones).
    """
    return accuracy_of(correct) | {
        "accuracy_ci95_photographs": None if photographs is None else list(photograph_interval(correct, photographs)),
        "photographs": None if photographs is None else len(np.unique(photographs)),
        "leaked_test_images": None if leaked is None else int(leaked.sum()),
        "without_leaked": None if leaked is None or not leaked.any() else accuracy_of(correct[~leaked]),
    }


@dataclass(frozen=True)
class PhotographMeans:
    """Mean probabilities of each photograph's copies, V entries.

    Copies that are labeled differently are kept apart: an entry is a photograph with a label.

    Attributes:
        probabilities: (V, C) mean class probabilities.
        labels: (V,) true classes.
        index: (N,) each image's entry, 0 to V - 1.
    """

    probabilities: npt.NDArray[np.float64]
    labels: Ints
    index: Ints


def mean_by_photograph(probabilities: Floats, labels: Ints, photographs: Names | None = None) -> PhotographMeans:
    """Average the probabilities of each photograph's copies.

    Args:
        probabilities: (N, C) class probabilities.
        labels: (N,) true classes.
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
        probabilities: (N, C) class probabilities.
        labels: (N,) true classes.
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
        num_classes: number of classes C.
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
    scores = []
    for label in range(num_classes):
        predicted, actual = preds == label, labels == label
        hits, positives, members = per_photograph(index, predicted & actual, predicted, actual).T
        score: dict[str, Any] = {"n": int(actual.sum()), "photographs": int(np.count_nonzero(members))}
        ratios = {"precision": (hits, positives), "recall": (hits, members), "f1": (2 * hits, positives + members)}
        for name, (part, whole) in ratios.items():
            score[name] = float(part.sum() / whole.sum()) if whole.any() else None
            score[f"{name}_ci95"] = list(ratio_interval(part, whole, resamples)) if whole.any() else None
        scores.append(score)
    return scores


def leak_sentence(test: dict[str, Any]) -> str:
    """Return a sentence on what leaked test images mean for the score."""
    rest = test["without_leaked"]
    clean = f"on the other {rest['n']} the accuracy is {rest['accuracy']:.2%}" if rest["n"] else "there are no others"
    return (
        f"{test['leaked_test_images']} of {test['n']} test images have a copy in training, so this score says little "
        f"about unseen photographs; {clean}"
    )
