"""Scores of a test, each with what it is worth: intervals, per-class figures, confusion matrix."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torchmetrics.functional.classification import multiclass_confusion_matrix, multiclass_precision, multiclass_recall

from fish_lightning.models.classifier import Predictions

Z95 = 1.959963984540054  # 97.5 % quantile of the standard normal distribution


def wilson_interval(correct: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of a proportion; holds near 0 and 1, where the normal approximation does not.

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


def score_test(predictions: Predictions, class_names: Sequence[str], logged: dict[str, Any]) -> dict[str, Any]:
    """The ``test`` block of ``summary.json``.

    Args:
        predictions: of all test images.
        class_names: in label order.
        logged: the trainer's ``callback_metrics`` after the test: ``test/loss`` and ``test/macro_f1``.

    Returns:
        ``accuracy``, ``accuracy_ci95``, ``macro_f1``, ``loss``, ``n``, ``per_class`` (precision, recall, n) and
        ``confusion_matrix`` (rows: true class, columns: predicted, in the order of ``per_class``).
    """
    n, correct = len(predictions.labels), int(predictions.correct.sum())
    preds, labels = torch.from_numpy(predictions.preds), torch.from_numpy(predictions.labels)
    classes = len(class_names)
    precision = multiclass_precision(preds, labels, classes, average="none").tolist()
    recall = multiclass_recall(preds, labels, classes, average="none").tolist()
    matrix = multiclass_confusion_matrix(preds, labels, classes).tolist()
    return {
        "accuracy": correct / n,
        "accuracy_ci95": list(wilson_interval(correct, n)),
        "macro_f1": float(logged["test/macro_f1"]),
        "loss": float(logged["test/loss"]),
        "n": n,
        "per_class": {
            name: {"precision": precision[i], "recall": recall[i], "n": sum(matrix[i])}
            for i, name in enumerate(class_names)
        },
        "confusion_matrix": matrix,
    }
