"""Test scores: accuracy with its confidence intervals, scores per class, confusion matrix."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torchmetrics.functional.classification import multiclass_confusion_matrix, multiclass_precision, multiclass_recall

from fish_lightning.data.catalog import Catalog
from fish_lightning.evaluation.predictions import Predictions

Z95 = 1.959963984540054  # 97.5 % quantile of the standard normal distribution


def wilson_interval(correct: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Return Wilson's score interval of a proportion, which holds near 0 and 1, unlike the normal approximation.

    Args:
        correct: number of successes, 0 to ``n``.
        n: number of independent trials, 1 or more.
        z: standard normal quantile of the confidence level; 95 % by default.

    Returns:
        Lower and upper bound, 0 to 1.

    Source: E. B. Wilson, J. Am. Stat. Assoc. 22 (1927) 209-212.
    """
    share = correct / n
    centre = share + z * z / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def photograph_interval(
    correct: npt.NDArray[np.bool_], photographs: npt.NDArray[np.str_], resamples: int = 4000
) -> tuple[float, float]:
    """Return the 95 % CI of the accuracy clustered by photograph: predictions for copies are not independent.

    A cluster bootstrap with a fixed seed: photographs are resampled with replacement, and the bounds are the 2.5 and
    97.5 % quantiles of the accuracy. If all images are right, or all wrong, a bootstrap has no spread; then Wilson's
    interval with one trial per photograph is returned.

    Args:
        correct: (N,) whether each prediction is correct.
        photographs: (N,) name of each image's photograph.
        resamples: number of bootstrap samples.

    Returns:
        Lower and upper bound, 0 to 1.

    Source: A. C. Davison and D. V. Hinkley, Bootstrap Methods and their Application (1997), section 3.8.
    """
    _, group = np.unique(photographs, return_inverse=True)
    sizes, right = np.bincount(group), np.bincount(group, weights=correct)
    if correct.all() or not correct.any():
        return wilson_interval(len(sizes) * int(correct.all()), len(sizes))
    drawn = np.random.default_rng(0).multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes)), size=resamples)
    low, high = np.quantile((drawn @ right) / (drawn @ sizes), [0.025, 0.975])
    return float(low), float(high)


def score_test(
    predictions: Predictions, catalog: Catalog, class_names: Sequence[str], logged: dict[str, Any]
) -> dict[str, Any]:
    """Return the ``test`` block of ``summary.json``.

    Args:
        predictions: of all test images.
        catalog: contains the images.
        class_names: in label order.
        logged: the trainer's ``callback_metrics`` after the test: ``test/loss`` and ``test/macro_f1``.

    Returns:
        ``accuracy``, ``accuracy_ci95`` (Wilson, for independent images), ``accuracy_ci95_photographs`` (clustered by
        photograph; None if photographs are unknown), ``photographs`` (their number), ``leaked_test_images`` (number
        with a copy in the training split), ``without_leaked`` (accuracy, interval and n of the others), ``macro_f1``,
        ``loss``, ``n``, ``per_class`` (precision, recall, n) and ``confusion_matrix`` (rows: true classes, columns:
        predicted classes, in the order of ``per_class``).
    """
    n, correct = len(predictions.labels), int(predictions.correct.sum())
    preds, labels = torch.from_numpy(predictions.preds), torch.from_numpy(predictions.labels)
    classes = len(class_names)
    precision = multiclass_precision(preds, labels, classes, average="none").tolist()
    recall = multiclass_recall(preds, labels, classes, average="none").tolist()
    matrix = multiclass_confusion_matrix(preds, labels, classes).tolist()
    photographs, leaked = catalog.photographs_or_paths[predictions.indices], catalog.leaked()[predictions.indices]
    known = catalog.photographs_known
    return {
        "accuracy": correct / n,
        "accuracy_ci95": list(wilson_interval(correct, n)),
        "accuracy_ci95_photographs": list(photograph_interval(predictions.correct, photographs)) if known else None,
        "photographs": len(np.unique(photographs)) if known else None,
        "leaked_test_images": int(leaked.sum()) if known else None,
        "without_leaked": accuracy_of(predictions.correct[~leaked]) if leaked.any() else None,
        "macro_f1": float(logged["test/macro_f1"]),
        "loss": float(logged["test/loss"]),
        "n": n,
        "per_class": {
            name: {"precision": precision[i], "recall": recall[i], "n": sum(matrix[i])}
            for i, name in enumerate(class_names)
        },
        "confusion_matrix": matrix,
    }


def accuracy_of(correct: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """Return ``accuracy``, ``accuracy_ci95`` (Wilson) and ``n`` of N predictions; only ``n`` if it is 0."""
    n, right = len(correct), int(correct.sum())
    return {"accuracy": right / n, "accuracy_ci95": list(wilson_interval(right, n)), "n": n} if n else {"n": 0}


def leak_warning(test: dict[str, Any]) -> str:
    """Return a sentence on what leaked test images mean for the score."""
    rest = test["without_leaked"]
    clean = f"on the other {rest['n']} the accuracy is {rest['accuracy']:.2%}" if rest["n"] else "there are no others"
    return (
        f"{test['leaked_test_images']} of {test['n']} test images have a copy in training, so this score says little "
        f"about unseen photographs; {clean}"
    )
