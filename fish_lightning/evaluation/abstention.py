"""When to say "I don't know": error over coverage, and the threshold that keeps the error of answers below a target."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from fish_lightning.errors import UserError
from fish_lightning.evaluation.arrays import Bools, Floats, Ints, Names, photograph_index, require_finite
from fish_lightning.evaluation.bootstrap import per_photograph, ratio_interval

#: The bound of :func:`choose_threshold`, for readers of a report.
BOUND = (
    "selective risk control (Geifman and El-Yaniv 2017) with photographs instead of images as independent trials: the "
    "betting bound of Waudby-Smith and Ramdas (2024), which is Chernoff's where photographs have equally many copies, "
    "with fixed-sequence testing of the thresholds from high to low"
)
CERTAINTY = 0.95  # probability that the guarantee holds
STEPS = 20  # thresholds that are tried at most: more would find a few more images and stop more often on the way


@dataclass(frozen=True)
class RiskCoverage:
    """Error among answered images over the share of images answered, an entry for each distinct confidence.

    Attributes:
        threshold: (K,) falling thresholds; an image is answered where its confidence is at least the threshold.
        coverage: (K,) share of images answered, rising to 1.
        risk: (K,) share of wrong answers among the answered images.
        aurc: area under the curve: mean risk over all numbers of answered images, 0 to 1, lower is better.
    """

    threshold: Floats
    coverage: Floats
    risk: Floats
    aurc: float


def risk_coverage(confidence: Floats, correct: Bools) -> RiskCoverage:
    """Trade errors for coverage: answer the most confident images first.

    Images of equal confidence count as answered in random order: ``aurc`` is the mean over all orders.

    Args:
        confidence: (N,) any score that is higher where an answer is more certain, usually the top probability.
        correct: (N,) whether each answer is right.

    Raises:
        UserError: there are no images, or confidences are NaN or infinite.

    Source: Y. Geifman and R. El-Yaniv, Selective Classification for Deep Neural Networks, NeurIPS 2017,
    arXiv:1705.08500; AURC: Y. Geifman, G. Uziel and R. El-Yaniv, ICLR 2019, arXiv:1805.08206.
    """
    n = len(photograph_index(None, len(correct)))
    require_finite(confidence, "confidence")
    values, place, sizes = np.unique(-confidence, return_inverse=True, return_counts=True)
    wrong = np.bincount(place, weights=~correct)
    answered, errors = np.cumsum(sizes), np.cumsum(wrong)
    spread = np.cumsum(np.repeat(wrong / sizes, sizes))
    aurc = float((spread / np.arange(1, n + 1)).mean())
    return RiskCoverage(threshold=-values, coverage=answered / n, risk=errors / answered, aurc=aurc)


@dataclass(frozen=True)
class SelectiveThreshold:
    """A threshold and what it guarantees.

    Attributes:
        threshold: lowest confidence at which an image is answered; 0 answers everything; None: nothing can be
            guaranteed.
        sentence: the guarantee, or why there is none.
    """

    threshold: float | None
    sentence: str


def choose_threshold(
    confidence: Floats,
    correct: Bools,
    photographs: Names | None = None,
    target_error: float = 0.05,
    candidates: int = 1,
) -> SelectiveThreshold:
    """Find the lowest threshold at which at most ``target_error`` of the answers are wrong, with 95 % confidence.

    Selective risk control of Geifman and El-Yaniv (2017), with their binomial bound, which needs independent images,
    replaced by a bound that needs independent photographs only.

    **What is guaranteed.** A photograph g with m_g answered copies, e_g of them wrong, has the excess
    z_g = (e_g - r m_g) / M, where r is the target and M the number of copies of the largest photograph. The error of
    *images*, E[sum of e_g] / E[sum of m_g], is at most r exactly where E[sum of z_g] <= 0. Photographs weigh by their
    size, as images do; neither equal sizes nor sizes unrelated to errors are assumed.

    **The bound.** W = product over photographs of (1 - a z_g), with 0 <= a <= 1 / (1 - r). No factor is negative, since
    z_g <= 1 - r. If the error is above r, photographs are independent and a does not depend on what is right, then
    E[W] = product of (1 - a E[z_g]) <= (1 - a mean E[z_g])^G <= 1, and P(W >= 20) <= 0.05 by Markov's inequality. A
    threshold is accepted where W >= 20. Copies of one photograph may depend on each other in any way. Where they are
    all right or all wrong and sizes are equal, this is Chernoff's bound with photographs as trials; without an error
    it is the exact binomial one, (1 - r)^n <= 0.05: 59 photographs for r = 0.05.

    **Several thresholds.** They are tested from high to low until one is not accepted (fixed-sequence testing), so the
    first one with too high an error is accepted with probability 0.05 at most and no correction is needed. This holds
    as long as the sequence does not depend on what is right: the j-th threshold answers as many images as it takes to
    afford j wrong photographs, and a = (r - q) / (r (1 - r)) with q = j / (images answered / M). The sequence starts at
    a quarter of the errors that are affordable when everything is answered: earlier steps afford next to none, and one
    unlucky photograph would end the search. So a threshold that answers less than about a quarter is not found.

    **Several models.** The checkpoint of a run is itself chosen by its accuracy on the validation photographs, which
    favors lucky ones: the best of 12 epochs whose error is just above r would be accepted in some 16 % of runs. So
    each of the ``candidates`` is tested at 0.05 / ``candidates`` (Bonferroni): whichever is chosen, and however, the
    guarantee holds. 12 epochs require 107 photographs without an error instead of 59. A choice among runs
    (a sweep) by the same photographs is not counted.

    The guarantee is exact for photographs with the confidences and numbers of copies of the validation photographs, on
    which the sequence depends; for new photographs of the same population it is confirmed by simulation (tests).
    ``confidence`` must not be fitted to these labels: use the probabilities before temperature scaling.

    Args:
        confidence: (N,) top probability of validation images, 0 to 1.
        correct: (N,) whether each answer is right.
        photographs: (N,) each image's photograph; None where they are not known: then images count as independent.
        target_error: r, above 0 and below 1.
        candidates: number of models of which one was chosen by its results on these images, 1 or more.

    Raises:
        UserError: there are no images, confidences are NaN or infinite, or ``target_error`` is out of range.

    Sources: Y. Geifman and R. El-Yaniv, NeurIPS 2017, arXiv:1705.08500; bound: I. Waudby-Smith and A. Ramdas,
    Estimating means of bounded random variables by betting, JRSS B 86 (2024), arXiv:2010.09686; fixed-sequence testing:
    A. N. Angelopoulos et al., Learn then Test, arXiv:2110.01052.
    """
    if not 0 < target_error < 1:
        raise UserError(f"target_error must be above 0 and below 1, not {target_error}")
    index = photograph_index(photographs, len(correct))
    require_finite(confidence, "confidence")
    largest, n = int(np.bincount(index).max()), len(correct)
    trials, goal = n / largest, math.log(candidates / (1 - CERTAINTY))
    if _evidence(0, trials, target_error) < goal:
        return SelectiveThreshold(None, _too_few(index, largest, target_error, goal, photographs is None))
    affordable = 0
    while affordable + 1 < target_error * trials and _evidence(affordable + 1, trials, target_error) >= goal:
        affordable += 1
    ranked = -np.sort(-confidence)
    steps = np.unique(np.linspace(affordable // 4, affordable, STEPS).round().astype(int))
    counts = [math.ceil(_trials_needed(int(errors), target_error, goal) * largest) for errors in steps]
    sequence = [(int(errors), float(ranked[min(count, n) - 1])) for errors, count in zip(steps, counts, strict=True)]
    accepted = None
    for errors, threshold in [*sequence, (affordable, 0.0)]:
        answered = confidence >= threshold
        if _log_wealth(index, answered, answered & ~correct, largest, target_error, errors) < goal:
            break
        accepted = threshold
    answered = confidence >= (sequence[0][1] if accepted is None else accepted)
    share, error = answered.mean(), 1 - correct[answered].mean()
    if accepted is None:
        return SelectiveThreshold(
            None,
            f"no threshold can guarantee an error of at most {target_error:.1%}: of the {share:.0%} most confident "
            f"validation images {error:.1%} are wrong, which is too many for so small a sample",
        )
    unit, condition = ("images", " if no image is a copy of another") if photographs is None else ("photographs", "")
    return SelectiveThreshold(
        accepted,
        f"the model answers {share:.0%} of the validation images and is wrong on {error:.1%} of them; for new {unit} "
        f"like these at most {target_error:.1%} of the answers are wrong, with {CERTAINTY:.0%} confidence{condition}",
    )


def selective_scores(
    confidence: Floats,
    correct: Bools,
    threshold: float | None,
    target_error: float = 0.05,
    photographs: Names | None = None,
) -> dict[str, Any]:
    """Compute the ``selective`` block of ``summary.json``.

    Args:
        confidence: (N,) top probability of test images.
        correct: (N,) whether each answer is right.
        threshold: threshold chosen on other images, by :func:`choose_threshold`; None where nothing can be guaranteed.
        target_error: target error that the threshold was chosen for.
        photographs: (N,) each image's photograph; None where they are not known.

    Returns:
        ``aurc``, ``target_error``, ``threshold``, ``coverage`` (None without a threshold), ``error`` and
        ``error_ci95_photographs`` (None where nothing is answered or photographs are not known).

    Raises:
        UserError: there are no images, or confidences are NaN or infinite.
    """
    index, aurc = photograph_index(photographs, len(correct)), risk_coverage(confidence, correct).aurc
    answered = np.zeros(len(correct), dtype=np.bool_) if threshold is None else confidence >= threshold
    sums = per_photograph(index, answered & ~correct, answered)
    wrong, total = sums.sum(axis=0)
    return {
        "aurc": aurc,
        "target_error": target_error,
        "threshold": threshold,
        "coverage": None if threshold is None else float(answered.mean()),
        "error": float(wrong / total) if total else None,
        "error_ci95_photographs": list(ratio_interval(*sums.T)) if total and photographs is not None else None,
    }


def _evidence(errors: float, trials: float, target: float) -> float:
    """Return the largest log W of ``trials`` photographs with ``errors`` wrong: trials times KL(share, target)."""
    right = trials - errors
    known = right * math.log(right / (trials * (1 - target)))
    return known + errors * math.log(errors / (trials * target)) if errors else known


def _trials_needed(errors: int, target: float, goal: float) -> float:
    """Return the number of photographs at which ``errors`` wrong ones can be afforded."""
    low, high = errors / target, errors / target + 1
    while _evidence(errors, high, target) < goal:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if _evidence(errors, middle, target) >= goal else (middle, high)
    return high


def _log_wealth(index: Ints, answered: Bools, wrong: Bools, largest: int, target: float, errors: int) -> float:
    """Return the log of W in :func:`choose_threshold`, for the a that affords ``errors`` wrong photographs."""
    sums = per_photograph(index, wrong, answered) / largest
    share = errors / float(sums[:, 1].sum())
    stake = (target - share) / (target * (1 - target))
    with np.errstate(divide="ignore"):
        return float(np.log(np.maximum(0, 1 - stake * (sums[:, 0] - target * sums[:, 1]))).sum())


def _too_few(index: Ints, largest: int, target: float, goal: float, single: bool) -> str:
    needed, photographs = math.ceil(_trials_needed(0, target, goal)), int(index.max()) + 1
    unit = "images" if single else "photographs"
    equal = photographs * largest == len(index)
    have = (
        f"there are {photographs}"
        if equal
        else f"the {photographs} here have up to {largest} copies, and count as only {len(index) // largest}"
    )
    return (
        f"no threshold can guarantee an error of at most {target:.1%}: this requires {needed} validation {unit}, all "
        f"classified correctly; {have}"
    )
