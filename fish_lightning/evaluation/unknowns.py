"""Unknown images: out-of-distribution images, which show none of the classes.

Scores that detect them, how well they do, and the threshold for rejection. Every score is higher for images that look
like one of the classes.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fish_lightning.evaluation.arrays import (
    Floats,
    Ints,
    Names,
    equal_weights,
    log_softmax,
    photograph_index,
    require_finite,
)
from fish_lightning.evaluation.bootstrap import central_interval, resampled_counts, wilson_interval
from fish_lightning.evaluation.neighbors import nearest_photographs

NEIGHBOR = 5  # the k of the k-NN score; Sun et al. use 50 of 50,000 single images, a class here may have 30 photographs
KEPT = 0.95  # share of known images that a threshold keeps
#: Scores of an image alone: they require no features of training images.
IMAGE_SCORES = ("energy", "max_logit", "max_softmax", "feature_norm")
#: The score that a run stores a threshold for: the highest mean AUROC over README's measurements (classes of the sample
#: data left out, real fish as unknown images, the sample data as unknown images of real fish): k-nearest neighbors
#: 0.85 and never below 0.81, max-softmax 0.75, max-logit 0.71, energy 0.69.
SCORE = "knn"
SCORE_WITHOUT_FEATURES = "max_softmax"  # the second best, where no training image can be read


def image_scores(logits: Floats, features: Floats) -> dict[str, npt.NDArray[np.float64]]:
    """Compute the scores that require no training images, those named in ``IMAGE_SCORES``.

    ``energy`` is the negative free energy, ``feature_norm`` the L2 norm of the features.

    Args:
        logits: (N, C) logits.
        features: (N, D) features.

    Returns:
        (N,) scores by name, higher for images of the classes.

    Raises:
        UserError: logits are NaN or infinite.

    Sources: max-softmax: D. Hendrycks and K. Gimpel, ICLR 2017, arXiv:1610.02136; max-logit: D. Hendrycks et al., ICML
    2022, arXiv:1911.11132; energy: W. Liu et al., NeurIPS 2020, arXiv:2010.03759.
    """
    require_finite(logits, "logits")
    top = logits.max(axis=1).astype(np.float64)
    log_top_probability = log_softmax(logits).max(axis=1)
    return {
        "max_softmax": np.exp(log_top_probability),
        "max_logit": top,
        "energy": top - log_top_probability,
        # without the copy in double precision that np.linalg.norm needs
        "feature_norm": np.asarray(np.sqrt(np.einsum("nd,nd->n", features, features, dtype=np.float64))),
    }


def neighbor_score(
    features: Floats, training: Floats, photographs: Names | None = None, k: int = NEIGHBOR
) -> npt.NDArray[np.float64]:
    """Compute ``knn``, the cosine to the k-th nearest training photograph; memory does not grow with the images.

    Args:
        features: (N, D) features of the images to score, none of them among ``training``.
        training: (M, D) features of training images.
        photographs: (M,) photograph of each training image: its copies count once; None where they are not known.
        k: rank of the neighbor; the farthest one counts where there are fewer photographs.

    Returns:
        (N,) scores, higher for images of the classes.

    Raises:
        UserError: there are no training images, or features are NaN or infinite.

    Source: Y. Sun et al., Out-of-Distribution Detection with Deep Nearest Neighbors, ICML 2022, arXiv:2204.06507.
    """
    owners = photograph_index(photographs, len(training))
    return nearest_photographs(features, training, photographs, min(k, int(owners.max()) + 1))[1][:, -1]


def detection(
    known: Floats,
    unknown: Floats,
    known_photographs: Names | None = None,
    unknown_photographs: Names | None = None,
    resamples: int = 1000,
) -> dict[str, Any]:
    """Measure how well a score separates unknown images from images of the classes.

    Intervals are 2.5 and 97.5 % quantiles of a bootstrap that draws known and unknown photographs with replacement,
    after two invented photographs of mean size are added to each side, one with its highest and one with its lowest
    score: without them an AUROC of 0.98 on 40 photographs is covered in 84 % of draws only, with them in 90 % or more
    (simulated, ``tests/evaluation/test_coverage.py``). The FPR rests on a threshold that 5 % of the known photographs
    miss: with fewer than 20 of them its interval is too narrow. Complete separation has no spread; then Wilson's
    interval is used, with the photographs of the smaller side as trials for the AUROC and the unknown ones for the FPR.

    Args:
        known: (N,) scores of images of the classes; a higher score means known.
        unknown: (M,) scores of unknown images.
        known_photographs: (N,) photograph of each image of the classes; None where they are not known.
        unknown_photographs: (M,) photograph of each unknown image; None where they are not known.
        resamples: number of draws.

    Returns:
        ``auroc`` (probability that a known image scores higher than an unknown one, ties count half: 0 to 1), ``fpr95``
        (share of unknown images accepted by the threshold that keeps 95 % of the known ones), and each with ``_ci95``.

    Raises:
        UserError: there are no images on one side, or scores are NaN or infinite.
    """
    known_index = photograph_index(known_photographs, len(known))
    unknown_index = photograph_index(unknown_photographs, len(unknown))
    require_finite(known, "scores")
    require_finite(unknown, "scores")
    photographs = int(known_index.max()) + 1, int(unknown_index.max()) + 1
    once = np.ones((1, photographs[0]), dtype=np.int64), np.ones((1, photographs[1]), dtype=np.int64)
    figures = _figures(_side(known, known_index), _side(unknown, unknown_index), *once)
    auroc, fpr = (float(value[0]) for value in figures)
    if auroc in (0, 1):
        fewer, foreign = min(photographs), photographs[1]
        intervals = wilson_interval(auroc * fewer, fewer), wilson_interval(fpr * foreign, foreign)
    else:
        widened = _side(known, known_index, extremes=True), _side(unknown, unknown_index, extremes=True)
        length = sum(len(side.scores) for side in widened)
        draws = (
            resampled_counts(np.ones(n + 2, dtype=np.int64), resamples, length, rng)
            for n, rng in zip(photographs, np.random.default_rng(0).spawn(2), strict=True)
        )
        drawn = [_figures(*widened, *counts) for counts in zip(*draws, strict=True)]
        aurocs, fprs = (np.concatenate(values) for values in zip(*drawn, strict=True))
        intervals = central_interval(aurocs), central_interval(fprs)
    return {"auroc": auroc, "auroc_ci95": intervals[0], "fpr95": fpr, "fpr95_ci95": intervals[1]}


def best_score(detections: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the score with the highest AUROC; ties are broken by the lower FPR, then by order."""
    return max(detections, key=lambda name: (detections[name]["auroc"], -detections[name]["fpr95"]))


def keep_threshold(scores: Floats, photographs: Names | None = None) -> float:
    """Find the threshold that keeps 95 % of the validation photographs: an image below it is unknown.

    Photographs weigh equally; one of which only some copies are kept counts for their share. The threshold is halfway
    between the lowest score that is kept and the next: an image on it would change sides with the last digit, in
    another precision or on another machine.

    Args:
        scores: (N,) scores of validation images, higher for images of the classes.
        photographs: (N,) each image's photograph; None where they are not known.

    Raises:
        UserError: there are no images, or scores are NaN or infinite.
    """
    weights = equal_weights(photograph_index(photographs, len(scores)))
    require_finite(scores, "scores")
    order = np.argsort(-scores, kind="stable")
    share = np.cumsum(weights[order])
    lowest = float(scores[order[min(int(np.searchsorted(share, KEPT - 1e-9)), len(scores) - 1)]])
    below = scores[scores < lowest]
    return (lowest + float(below.max())) / 2 if len(below) else lowest - 1e-4 * max(1.0, abs(lowest))


class _Side(NamedTuple):
    """Scores (N,) of known or unknown images in descending order, each with its photograph (an index) and weight."""

    scores: Floats
    groups: Ints
    weights: Floats


def _side(scores: Floats, index: Ints, extremes: bool = False) -> _Side:
    """Sort scores; ``extremes`` adds two photographs of mean size, one with the highest and one with the lowest."""
    weights = np.ones(len(scores))
    if extremes:
        photographs = index.max() + 1
        weights = np.append(weights, np.full(2, len(scores) / photographs))
        scores = np.append(scores, [scores.max(), scores.min()])
        index = np.append(index, [photographs, photographs + 1])
    order = np.argsort(-scores, kind="stable")
    return _Side(scores[order], index[order], weights[order])


def _figures(
    known: _Side, unknown: _Side, known_counts: Ints, unknown_counts: Ints
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return (B,) AUROC and (B,) FPR at 95 % TPR where photographs are drawn (B, G) times."""
    above = np.searchsorted(-known.scores, -unknown.scores, side="left")
    not_below = np.searchsorted(-known.scores, -unknown.scores, side="right")
    accepted = np.searchsorted(-unknown.scores, -known.scores, side="right")
    drawn = unknown.weights * unknown_counts[:, unknown.groups]
    kept, taken = (
        np.pad(np.cumsum(weights, axis=1), ((0, 0), (1, 0)))
        for weights in (known.weights * known_counts[:, known.groups], drawn)
    )
    auroc = ((kept[:, above] + kept[:, not_below]) * drawn).sum(axis=1) / (2 * kept[:, -1] * taken[:, -1])
    last = (kept[:, 1:] >= KEPT * kept[:, -1:] - 1e-9).argmax(axis=1)
    return auroc, taken[np.arange(len(taken)), accepted[last]] / taken[:, -1]
