"""Is model B better than model A: paired difference on the same images, with an interval that counts photographs."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fish_lightning.errors import UserError
from fish_lightning.evaluation.arrays import Bools, Ints, Names, photograph_index
from fish_lightning.evaluation.bootstrap import Z95, bootstrap_ratio, central_interval, per_photograph

Z80 = 0.8416212335729143  # 80 % quantile of the standard normal distribution: the power of the planned comparison


def common_images(
    paths_a: Sequence[str], paths_b: Sequence[str]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Match the images that two runs were tested on.

    Args:
        paths_a: (N,) paths of A's test images, relative to the data's root.
        paths_b: (M,) paths of B's test images, relative to the data's root.

    Returns:
        Indices into ``paths_a`` and into ``paths_b`` of the K images in both, in the order of the paths.

    Raises:
        UserError: a path occurs twice in one run, or the two share none.
    """
    for name, paths in (("A", paths_a), ("B", paths_b)):
        repeated = len(paths) - len(set(paths))
        if repeated:
            raise UserError(
                f"{name} tests {repeated:,} image{'s' * (repeated > 1)} more than once\n"
                "pool only runs whose test sets do not overlap, such as folds (sweep=folds), or compare single runs"
            )
    shared, in_a, in_b = np.intersect1d(np.asarray(paths_a), np.asarray(paths_b), return_indices=True)
    if not len(shared):
        raise UserError(
            f"A was tested on {len(paths_a):,} images and B on {len(paths_b):,}, and they share none\n"
            "compare runs of the same data and split, or evaluate both on the same images"
        )
    return in_a, in_b


def joined_photographs(photographs_a: Names, photographs_b: Names) -> Ints:
    """Group images that either of two runs takes for copies of one photograph.

    Args:
        photographs_a: (N,) each image's photograph as A groups them.
        photographs_b: (N,) each image's photograph as B groups them.

    Returns:
        (N,) group number of each image.
    """
    n = len(photographs_a)
    indices = [photograph_index(photographs, n) for photographs in (photographs_a, photographs_b)]
    joined, before = np.arange(n), None
    while before is None or (joined != before).any():
        before = joined
        for index in indices:  # each image takes the smallest number among its copies, until none changes
            smallest = np.full(n, n)
            np.minimum.at(smallest, index, joined)
            joined = smallest[index]
    return joined


def compare(
    correct_a: Bools,
    correct_b: Bools,
    photographs: Names | Ints | None = None,
    margin: float = 0.01,
    resamples: int = 4000,
) -> dict[str, Any]:
    """Compare two models on the same images: the statistics of ``compare.json``.

    The interval is a paired cluster bootstrap: whole photographs are drawn with replacement, with both models' answers.
    Two invented photographs of mean size are added before drawing, one that only A gets right and one that only B does,
    as Agresti and Min add half a pair to each cell. Otherwise no spread is seen where no answer differs, and too little
    where few do: 4 differing photographs, all for B, would be called decided.

    The verdict is ``equivalent`` where the interval lies within [-margin, margin], else ``better`` (B than A) or
    ``worse`` where it leaves out 0, else ``not decided``.

    Args:
        correct_a: (N,) whether A is right.
        correct_b: (N,) whether B is right about the same images.
        photographs: (N,) each image's photograph; None where they are not known: then images count as independent.
        margin: difference in accuracy that does not matter, 0 or more.
        resamples: number of draws.

    Returns:
        ``n``; ``photographs`` (None where not known); ``accuracy`` (``a``, ``b``); ``difference`` (b - a);
        ``difference_ci95_photographs``; ``only_a_right`` and ``only_b_right`` (images); ``photographs_better_in_a`` and
        ``photographs_better_in_b`` (photographs of which it gets more copies right); ``mcnemar_p`` (None unless every
        image is its own photograph); ``mcnemar_note``; ``margin``; ``verdict``; ``photographs_to_decide`` (see
        :func:`photographs_to_decide`; None where decided or beyond estimation); ``sentence``.

    Raises:
        UserError: there are no images.

    Sources: Davison and Hinkley (1997), section 3.8; A. Agresti and Y. Min, Statistics in Medicine 24 (2005) 729-740.
    """
    n = len(correct_a)
    index = photograph_index(photographs, n)
    only_a, only_b = correct_a & ~correct_b, correct_b & ~correct_a
    sums = per_photograph(index, only_a, only_b, np.ones(n))
    gain, sizes, groups = sums[:, 1] - sums[:, 0], sums[:, 2], len(sums)
    mean_size = n / groups
    low, high = central_interval(
        bootstrap_ratio(np.append(gain, [mean_size, -mean_size]), np.append(sizes, [mean_size, mean_size]), resamples)
    )
    difference = float(gain.sum() / n)
    verdict = "not decided"
    if -margin <= low and high <= margin:
        verdict = "equivalent"
    elif low > 0 or high < 0:
        verdict = "better" if low > 0 else "worse"
    needed = photographs_to_decide(difference, (high - low) / 2, groups, margin) if verdict == "not decided" else None
    single = groups == n
    note = "exact" if photographs is not None else "exact if images are independent: photographs are not known"
    if not single:
        note = "not computed: copies of a photograph are right or wrong together; the test requires independent images"
    return {
        "n": n,
        "photographs": None if photographs is None else groups,
        "accuracy": {"a": float(correct_a.mean()), "b": float(correct_b.mean())},
        "difference": difference,
        "difference_ci95_photographs": [low, high],
        "only_a_right": int(only_a.sum()),
        "only_b_right": int(only_b.sum()),
        "photographs_better_in_a": int((gain < 0).sum()),
        "photographs_better_in_b": int((gain > 0).sum()),
        "mcnemar_p": exact_mcnemar(int(only_a.sum()), int(only_b.sum())) if single else None,
        "mcnemar_note": note,
        "margin": margin,
        "verdict": verdict,
        "photographs_to_decide": needed,
        "sentence": _sentence(verdict, difference, (low, high), margin, needed, known=photographs is not None),
    }


def exact_mcnemar(only_a: int, only_b: int) -> float:
    """Two-sided p-value of McNemar's exact test: are differing answers as often for A as for B?

    Holds for independent images only.

    Args:
        only_a: images that only A gets right.
        only_b: images that only B gets right.

    Returns:
        p-value, 0 to 1; 1 where no answer differs.

    Source: Q. McNemar, Psychometrika 12 (1947) 153-157; exact: the binomial distribution with p = 1/2.
    """
    n, fewer = only_a + only_b, min(only_a, only_b)
    log_factorials = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    k = np.arange(fewer + 1)
    log_terms: npt.NDArray[np.float64] = log_factorials[n] - log_factorials[k] - log_factorials[n - k] - n * math.log(2)
    return min(1.0, 2 * float(np.exp(log_terms).sum()))


def photographs_to_decide(difference: float, half_width: float, photographs: int, margin: float) -> int | None:
    """Estimate how many photographs it takes to decide, should the difference stay as measured.

    The interval narrows with the square root of their number. The estimate is the smaller number at which it leaves out
    0, or lies within the margin, with a probability of 80 %.

    Args:
        difference: measured difference in accuracy, -1 to 1.
        half_width: half the width of its 95 % interval.
        photographs: number of photographs that the difference was measured on.
        margin: difference in accuracy that does not matter.

    Returns:
        Number of photographs; None where the difference is 0 and so is the margin.
    """
    room = max(abs(difference), margin - abs(difference))
    if room <= 0:
        return None
    return math.ceil(photographs * (half_width / room * (Z95 + Z80) / Z95) ** 2)


def _sentence(
    verdict: str, difference: float, interval: tuple[float, float], margin: float, needed: int | None, known: bool
) -> str:
    low, high = (f"{100 * bound:+.1f}" for bound in interval)
    clustered = " clustered by photograph" if known else ""
    measured = f"B - A = {100 * difference:+.1f} percentage points, 95% CI {low} to {high}{clustered}"
    if verdict == "equivalent":
        return f"A and B are equivalent within {100 * margin:g} percentage point{'s' * (margin != 0.01)} ({measured})"
    if verdict != "not decided":
        return f"B is {verdict} than A ({measured})"
    units = "photographs" if known else "images"
    estimate = "" if needed is None else f"; deciding it would take about {needed:,} test {units}"
    return f"not decided whether B is better or worse than A ({measured}){estimate}"
