"""Images of none of the classes: scores that detect them, their figures, and the threshold for rejection.

Every score is higher for images that look like one of the classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass

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
from fish_lightning.evaluation.bootstrap import resampled_counts, wilson_interval
from fish_lightning.evaluation.neighbours import nearest_photographs

NEIGHBOUR = (
    5  # the k of the k-NN score; Sun et al. use 50 of 50,000 single images, a class here may have 30 photographs
)
KEPT = 0.95  # share of known images that a threshold keeps
#: Scores of an image alone: they require no training features, so ``predict`` can compute them.
IMAGE_SCORES = ("energy", "max_logit", "max_softmax", "feature_norm")


def logit_scores(logits: Floats) -> dict[str, npt.NDArray[np.float64]]:
    """Scores of (N, C) logits: ``max_softmax``, ``max_logit`` and ``energy`` (negative free energy, temperature 1).

    Returns:
        Name to (N,) score, higher for images of the classes.

    Raises:
        UserError: logits are NaN or infinite.

    Sources: max-softmax: D. Hendrycks and K. Gimpel, ICLR 2017, arXiv:1610.02136; max-logit: D. Hendrycks et al., ICML
    2022, arXiv:1911.11132; energy: W. Liu et al., NeurIPS 2020, arXiv:2010.03759.
    """
    require_finite(logits, "logits")
    top = logits.max(axis=1).astype(np.float64)
    log_top_probability = log_softmax(logits).max(axis=1)
    return {"max_softmax": np.exp(log_top_probability), "max_logit": top, "energy": top - log_top_probability}


def image_scores(logits: Floats, features: Floats) -> dict[str, npt.NDArray[np.float64]]:
    """Scores that require neither training images nor their features: those named in ``IMAGE_SCORES``.

    Args:
        logits: (N, C).
        features: (N, D).

    Returns:
        Name to (N,) score, higher for images of the classes.

    Raises:
        UserError: logits are NaN or infinite.
    """
    return logit_scores(logits) | {"feature_norm": np.linalg.norm(features.astype(np.float64), axis=1)}


def feature_scores(
    features: Floats, training: Floats, photographs: Names | None = None, k: int = NEIGHBOUR
) -> dict[str, npt.NDArray[np.float64]]:
    """Scores of (N, D) features: ``feature_norm`` (L2) and ``knn``, the cosine to the k-th nearest training photograph.

    Args:
        features: (N, D) of the images to score, none of them among ``training``.
        training: (M, D) of training images.
        photographs: (M,) photograph of each training image: its copies count once; None where they are not known.
        k: which neighbour; the farthest where there are fewer photographs.

    Returns:
        Name to (N,) score, higher for images of the classes.

    Raises:
        UserError: there are no training images, or features are NaN or infinite.

    Source: Y. Sun et al., Out-of-Distribution Detection with Deep Nearest Neighbors, ICML 2022, arXiv:2204.06507.
    """
    owners = photograph_index(photographs, len(training))
    cosine = nearest_photographs(features, training, photographs, min(k, int(owners.max()) + 1))[1][:, -1]
    return {"feature_norm": np.linalg.norm(features.astype(np.float64), axis=1), "knn": cosine}


@dataclass(frozen=True)
class Detection:
    """How well a score separates unknown images from known ones.

    Attributes:
        auroc: probability that a known image scores higher than an unknown one (ties count half), 0 to 1.
        auroc_ci95: its interval, clustered by photograph.
        fpr95: share of unknown images accepted by the threshold that keeps 95 % of the known ones.
        fpr95_ci95: its interval, clustered by photograph.
    """

    auroc: float
    auroc_ci95: tuple[float, float]
    fpr95: float
    fpr95_ci95: tuple[float, float]


def detection(
    known: Floats,
    unknown: Floats,
    known_photographs: Names | None = None,
    unknown_photographs: Names | None = None,
    resamples: int = 1000,
) -> Detection:
    """Measure a score on images of the classes and of none of them.

    Intervals are 2.5 and 97.5 % quantiles of a bootstrap that draws known and unknown photographs with replacement.
    Where it sees no spread, as with complete separation: Wilson's interval, with the photographs of the smaller side as
    trials for the AUROC and the unknown ones for the FPR.

    Args:
        known: (N,) scores of images of the classes, higher for known.
        unknown: (M,) scores of images of none of them.
        known_photographs: (N,) their photographs; None where they are not known.
        unknown_photographs: (M,) likewise.
        resamples: number of draws.

    Raises:
        UserError: there are no images on one side, or scores are NaN or infinite.
    """
    known_index, unknown_index = (
        photograph_index(known_photographs, len(known)),
        photograph_index(unknown_photographs, len(unknown)),
    )
    require_finite(known, "scores")
    require_finite(unknown, "scores")
    by_known, by_unknown = np.argsort(-known, kind="stable"), np.argsort(-unknown, kind="stable")
    measure = _Ranking(known[by_known], unknown[by_unknown]).measure
    auroc, fpr = measure(np.ones((1, len(known))), np.ones((1, len(unknown))))
    ones_known, ones_unknown = (np.ones(int(i.max()) + 1, dtype=np.int64) for i in (known_index, unknown_index))
    length, (first, second) = len(known) + len(unknown), np.random.default_rng(0).spawn(2)
    draws = zip(
        resampled_counts(ones_known, resamples, length, first),
        resampled_counts(ones_unknown, resamples, length, second),
        strict=True,
    )
    drawn = [measure(w[:, known_index[by_known]], v[:, unknown_index[by_unknown]]) for w, v in draws]
    aurocs, fprs = (np.concatenate(values) for values in zip(*drawn, strict=True))
    return Detection(
        float(auroc[0]),
        _interval(aurocs, float(auroc[0]), min(len(ones_known), len(ones_unknown))),
        float(fpr[0]),
        _interval(fprs, float(fpr[0]), len(ones_unknown)),
    )


def best_score(detections: Mapping[str, Detection]) -> str:
    """Name of the score with the highest AUROC; of equal ones the lower FPR, then the first named."""
    return max(detections, key=lambda name: (detections[name].auroc, -detections[name].fpr95))


def keep_threshold(scores: Floats, photographs: Names | None = None, kept: float = KEPT) -> float:
    """The highest threshold that keeps 95 % of validation photographs: an image below it is of none of the classes.

    Photographs weigh equally; one of which only some copies are kept counts for their share.

    Args:
        scores: (N,) of validation images, higher for known.
        photographs: (N,) each image's photograph; None where they are not known.
        kept: share of photographs whose score is at least the threshold.

    Raises:
        UserError: there are no images, or scores are NaN or infinite.
    """
    weights = equal_weights(photograph_index(photographs, len(scores)))
    require_finite(scores, "scores")
    order = np.argsort(-scores, kind="stable")
    share = np.cumsum(weights[order])
    return float(scores[order[min(int(np.searchsorted(share, kept - 1e-9)), len(scores) - 1)]])


class _Ranking:
    """Where unknown images stand among known ones, both sorted by falling score; weights come later."""

    def __init__(self, known: Floats, unknown: Floats) -> None:
        self.above = np.searchsorted(-known, -unknown, side="left")
        self.not_below = np.searchsorted(-known, -unknown, side="right")
        self.accepted = np.searchsorted(-unknown, -known, side="right")

    def measure(
        self, known: Floats | Ints, unknown: Floats | Ints
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """(B,) AUROC and (B,) FPR at 95 % of B draws; (B, N) and (B, M) weights of the sorted images."""
        kept, taken = (np.pad(np.cumsum(w, axis=1, dtype=np.float64), ((0, 0), (1, 0))) for w in (known, unknown))
        pairs = kept[:, -1] * taken[:, -1]
        auroc = ((kept[:, self.above] + kept[:, self.not_below]) * unknown).sum(axis=1) / (2 * pairs)
        last = (kept[:, 1:] >= KEPT * kept[:, -1:] - 1e-9).argmax(axis=1)
        return auroc, taken[np.arange(len(taken)), self.accepted[last]] / taken[:, -1]


def _interval(drawn: npt.NDArray[np.float64], value: float, photographs: int) -> tuple[float, float]:
    if np.ptp(drawn) < 1e-12:
        return wilson_interval(value * photographs, photographs)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)
