"""Can the probability be believed: calibration error, its diagram, and the temperature that corrects overconfidence."""

from dataclasses import dataclass
from typing import Any

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
    softmax,
)
from fish_lightning.evaluation.bootstrap import ratio_interval

BINS = 15  # of Guo et al. 2017, and torchmetrics' default
COLDEST, HOTTEST = 0.01, 100.0  # bounds of the temperature: logits of a cosine classifier need about 0.05


def negative_log_likelihood(logits: Floats, labels: Ints) -> float:
    """Return the mean cross-entropy in nats of (N, C) logits and (N,) labels: 0 or more, lower is better."""
    return float(-log_softmax(logits)[np.arange(len(labels)), labels].mean())


def brier_score(probabilities: Floats, labels: Ints) -> float:
    """Return the mean squared distance of (N, C) probabilities from the one-hot labels, summed over classes: 0 to 2.

    Source: G. W. Brier, Monthly Weather Review 78 (1950) 1-3.
    """
    one_hot = np.arange(probabilities.shape[1]) == labels[:, None]
    return float(np.square(probabilities - one_hot).sum(axis=1).mean())


def confidence_bins(confidence: Floats, bins: int = BINS) -> Ints:
    """Return the (N,) index of each confidence's bin, of equal-width bins [0, 1/bins), ..., [1 - 1/bins, 1].

    torchmetrics puts a confidence of exactly 1 into a bin of its own; here it belongs to the last one.
    """
    edges = np.linspace(0, 1, bins + 1)
    return np.minimum(np.searchsorted(edges, confidence, side="right") - 1, bins - 1)


def expected_calibration_error(probabilities: Floats, labels: Ints, bins: int = BINS) -> float:
    """Compute the mean distance between confidence and accuracy over bins of confidence, weighted by image counts.

    Args:
        probabilities: (N, C) class probabilities.
        labels: (N,) true classes.
        bins: number of bins of equal width for the top probability.

    Returns:
        Error, 0 to 1; lower is better.

    Source: C. Guo et al., On Calibration of Modern Neural Networks, ICML 2017, arXiv:1706.04599.
    """
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    gaps = np.bincount(confidence_bins(confidence, bins), weights=correct - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(labels))


@dataclass(frozen=True)
class ReliabilityCurve:
    """Accuracy over confidence, an entry for each of B bins; NaN where a bin is empty.

    Attributes:
        edges: (B + 1,) edges of the bins, 0 to 1.
        confidence: (B,) mean top probability.
        accuracy: (B,) share of right answers.
        accuracy_ci95: (B, 2) 95 % intervals of the accuracy, clustered by photograph.
        images: (B,) number of images.
        photographs: (B,) number of photographs with an image in the bin.
    """

    edges: Floats
    confidence: Floats
    accuracy: Floats
    accuracy_ci95: Floats
    images: Ints
    photographs: Ints


def reliability_curve(
    probabilities: Floats,
    labels: Ints,
    photographs: Names | None = None,
    bins: int = BINS,
    resamples: int = 4000,
) -> ReliabilityCurve:
    """Compute accuracy over confidence, with a 95 % band from a cluster bootstrap over photographs.

    Args:
        probabilities: (N, C) class probabilities.
        labels: (N,) true classes.
        photographs: (N,) each image's photograph; None where they are not known.
        bins: number of bins of equal width for the top probability.
        resamples: number of draws.

    Raises:
        UserError: there are no images.

    Source: A. Niculescu-Mizil and R. Caruana, Predicting Good Probabilities with Supervised Learning, ICML 2005.
    """
    index = photograph_index(photographs, len(labels))
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    where = confidence_bins(confidence, bins)
    right, images = np.zeros((2, index.max() + 1, bins))
    np.add.at(right, (index, where), correct)
    np.add.at(images, (index, where), 1)
    count = images.sum(axis=0)
    with np.errstate(invalid="ignore"):
        return ReliabilityCurve(
            edges=np.linspace(0, 1, bins + 1),
            confidence=np.bincount(where, weights=confidence, minlength=bins) / count,
            accuracy=right.sum(axis=0) / count,
            accuracy_ci95=np.array([ratio_interval(right[:, b], images[:, b], resamples) for b in range(bins)]),
            images=count.astype(np.int64),
            photographs=np.count_nonzero(images, axis=0),
        )


def fit_temperature(logits: Floats, labels: Ints, photographs: Names | None = None) -> float:
    """Find the temperature T that minimizes the NLL of softmax(logits / T) on validation images.

    Photographs weigh equally and copies share the weight of theirs: T is to hold for new photographs, and copies add
    images but hardly any evidence. Otherwise one photograph with 200 copies would set it alone.

    The NLL is convex in 1/T, so T is where its slope crosses 0, found by bisection. Where every image is recognized the
    NLL falls forever as T goes to 0: then there is no evidence of how sure to be, and T stays 1.

    Args:
        logits: (N, C) logits of validation images, none of them trained on.
        labels: (N,) true classes.
        photographs: (N,) each image's photograph; None where they are not known.

    Returns:
        Temperature, 0.01 to 100: above 1 the model was overconfident, below 1 underconfident.

    Raises:
        UserError: there are no images, or logits are NaN or infinite.

    Source: C. Guo et al., On Calibration of Modern Neural Networks, ICML 2017, arXiv:1706.04599.
    """
    weights = equal_weights(photograph_index(photographs, len(labels)))
    require_finite(logits, "logits")
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    true = shifted[np.arange(len(labels)), labels]
    if (true == 0).all():
        return 1.0

    def slope(inverse: float) -> float:
        """Return the slope of the NLL in 1/T: the expected minus the true logit."""
        return float(weights @ ((softmax(inverse * shifted) * shifted).sum(axis=1) - true))

    cold, hot = np.log(COLDEST), np.log(HOTTEST)
    while hot - cold > 1e-7:
        middle = (cold + hot) / 2
        cold, hot = (middle, hot) if slope(np.exp(-middle)) > 0 else (cold, middle)
    return float(np.exp((cold + hot) / 2))


def calibration_scores(logits: Floats, labels: Ints, temperature: float | None = None) -> dict[str, Any]:
    """Compute the ``calibration`` block of ``summary.json``.

    Args:
        logits: (N, C) logits.
        labels: (N,) true classes.
        temperature: temperature fitted on other images, by :func:`fit_temperature`; None where there are none.

    Returns:
        ``ece``, ``nll``, ``brier``, ``temperature`` and ``after``: the three figures of softmax(logits / temperature),
        None where there is no temperature.

    Raises:
        UserError: there are no images, or logits are NaN or infinite.
    """
    photograph_index(None, len(labels))
    require_finite(logits, "logits")

    def scores(scaled: npt.NDArray[np.float64]) -> dict[str, float]:
        probabilities = softmax(scaled)
        return {
            "ece": expected_calibration_error(probabilities, labels),
            "nll": negative_log_likelihood(scaled, labels),
            "brier": brier_score(probabilities, labels),
        }

    exact = logits.astype(np.float64)
    after = None if temperature is None else scores(exact / temperature)
    return {**scores(exact), "temperature": temperature, "after": after}
