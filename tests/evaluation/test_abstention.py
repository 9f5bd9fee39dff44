"""Abstention: the guarantee holds in at least 95 % of draws where copies are wrong together, and it is not vacuous."""

import itertools

import numpy as np
import pytest

from fish_lightning.errors import UserError
from fish_lightning.evaluation.abstention import choose_threshold, risk_coverage, selective_scores


def answers(rng, photographs, copies, difficulty):
    """Copies of a photograph share its difficulty and, nine times of ten, one fate.

    Args:
        copies: (low, high) number of copies of a photograph, drawn evenly.
        difficulty: chance of a wrong answer as a function of u, even between 0 and 1; confidence falls with u.
    """
    u = rng.random(photographs)
    names = np.repeat(np.arange(photographs), rng.integers(copies[0], copies[1] + 1, photographs))
    together, alone = rng.random(photographs) < difficulty(u), rng.random(len(names)) < difficulty(u)[names]
    wrong = np.where(rng.random(len(names)) < 0.9, together[names], alone)
    confidence = np.clip(1 - 0.9 * u[names] + rng.normal(0, 0.05, len(names)), 0, 1)
    return confidence, ~wrong, names


def simulate(photographs, copies, difficulty, trials=300):
    """Share of draws whose guarantee holds for the population, share with one, mean coverage of the population."""
    rng = np.random.default_rng(0)
    confidence, correct, _ = answers(rng, 40_000, copies, difficulty)
    order = np.argsort(-confidence)
    error = np.cumsum(~correct[order]) / np.arange(1, len(order) + 1)
    kept, given, coverage = 0, 0, 0.0
    for _ in range(trials):
        threshold = choose_threshold(*answers(rng, photographs, copies, difficulty)).threshold
        answered = 0 if threshold is None else int((confidence >= threshold).sum())
        given += answered > 0
        coverage += answered / len(order)
        kept += answered == 0 or error[answered - 1] <= 0.05
    return kept / trials, given / trials, coverage / trials


@pytest.mark.parametrize("copies", [(1, 1), (20, 20), (1, 20)], ids=str)
@pytest.mark.parametrize(
    "difficulty",
    [
        pytest.param(lambda u: np.full_like(u, 0.055), id="confidence says nothing, error just too high"),
        pytest.param(lambda u: 0.6 * u**3, id="half of the images can be answered"),
    ],
)
def test_the_guarantee_holds_in_95_percent_of_draws(copies, difficulty):
    assert simulate(150, copies, difficulty)[0] >= 0.95


def test_the_guarantee_holds_where_large_photographs_are_worse():
    """Half of the 2 % that have ten copies are wrong: 1 % of photographs, 8.5 % of images."""
    rng, given, given_by_photograph, trials = np.random.default_rng(0), 0, 0, 200
    for _ in range(trials):
        large = rng.random(1000) < 0.02
        names, correct = np.repeat(np.arange(1000), np.where(large, 10, 1)), ~(large & (rng.random(1000) < 0.5))
        given += choose_threshold(rng.random(len(names)), correct[names], names).threshold is not None
        given_by_photograph += choose_threshold(rng.random(1000), correct).threshold is not None
    assert given / trials <= 0.05
    assert given_by_photograph / trials > 0.95  # what a trial for each photograph, whatever its size, would guarantee


def test_a_good_model_answers_nearly_everything():
    kept, given, coverage = simulate(400, (1, 20), lambda u: 0.5 * u**12, trials=100)  # 3.8 % wrong
    assert kept >= 0.95
    assert given == 1
    assert coverage > 0.8


def test_the_guarantee_holds_for_the_best_of_many_epochs():
    """The checkpoint is chosen by its accuracy on the photographs that the threshold is chosen on."""
    rng, runs, epochs = np.random.default_rng(0), 400, 12
    given = {1: 0, epochs: 0}
    for _ in range(runs):
        correct = rng.random((epochs, 150)) >= 0.055  # just above the target, and confidence says nothing
        best = correct[correct.sum(axis=1).argmax()]
        for candidates in given:
            chosen = choose_threshold(rng.random(150), best, np.arange(150), candidates=candidates)
            given[candidates] += chosen.threshold is not None
    assert given[epochs] / runs <= 0.05
    assert given[1] / runs > 0.1


def test_more_epochs_require_more_photographs():
    correct, confidence = np.ones(150, dtype=bool), np.linspace(0.5, 1, 150)
    assert choose_threshold(confidence[:107], correct[:107], np.arange(107), candidates=12).threshold == 0
    fewer = choose_threshold(confidence[:106], correct[:106], np.arange(106), candidates=12)
    assert "this requires 107 validation photographs, all classified correctly; there are 106" in fewer.sentence


def test_copies_taken_for_independent_images_would_break_the_guarantee():
    """What the bound is for: the same answers, with photographs withheld."""
    rng, broken = np.random.default_rng(0), 0
    for _ in range(100):
        confidence, correct, _ = answers(rng, 60, (20, 20), lambda u: np.full_like(u, 0.06))
        broken += choose_threshold(confidence, correct).threshold is not None
    assert broken > 15


def test_59_photographs_without_an_error_guarantee_5_percent_and_58_do_not():
    names = np.repeat(np.arange(59), 20)
    confidence, correct = np.linspace(0.5, 1, 59 * 20), np.ones(59 * 20, dtype=bool)
    chosen = choose_threshold(confidence, correct, names)
    assert chosen.threshold == 0
    assert chosen.sentence.startswith("the model answers 100% of the validation images and is wrong on 0.0% of them")
    assert "at most 5.0% of the answers are wrong, with 95% confidence" in chosen.sentence
    single = choose_threshold(confidence, correct).sentence
    assert single.endswith(
        "for new images like these at most 5.0% of the answers are wrong, with 95% confidence if no "
        "image is a copy of another"
    )
    fewer = choose_threshold(confidence[20:], correct[20:], names[20:])
    assert fewer.threshold is None
    assert fewer.sentence == (
        "no threshold can guarantee an error of at most 5.0%: this requires 59 validation photographs, "
        "all classified correctly; there are 58"
    )


def test_a_photograph_with_many_copies_makes_the_others_count_less():
    names = np.concatenate([np.arange(100), np.repeat(100, 50)])
    chosen = choose_threshold(np.linspace(0, 1, 150), np.ones(150, dtype=bool), names)
    assert chosen.threshold is None
    assert chosen.sentence.endswith("the 101 here have up to 50 copies, and count as only 3")


def test_a_bad_model_gets_a_reason_instead_of_a_threshold():
    rng = np.random.default_rng(0)
    chosen = choose_threshold(rng.random(500), rng.random(500) < 0.5)
    assert chosen.threshold is None
    assert "which is too many for so small a sample" in chosen.sentence


def test_equal_confidences_are_answered_together():
    chosen = choose_threshold(np.ones(400), np.arange(400) % 100 > 0)
    assert chosen.threshold == 0.0
    assert choose_threshold(np.ones(400), np.arange(400) % 10 > 0).threshold is None


def test_risk_coverage_by_hand():
    curve = risk_coverage(np.array([0.9, 0.6, 0.8, 0.7]), np.array([True, False, False, True]))
    assert curve.threshold == pytest.approx([0.9, 0.8, 0.7, 0.6])
    assert curve.coverage == pytest.approx([0.25, 0.5, 0.75, 1])
    assert curve.risk == pytest.approx([0, 1 / 2, 1 / 3, 2 / 4])
    assert curve.aurc == pytest.approx((0 + 1 / 2 + 1 / 3 + 2 / 4) / 4)


def test_ties_count_as_the_mean_over_their_orders():
    confidence, correct = np.array([0.9, 0.5, 0.5, 0.5]), np.array([True, False, True, False])
    orders = [[0, *rest] for rest in itertools.permutations([1, 2, 3])]
    expected = np.mean([risk_coverage(-np.arange(4.0), correct[order]).aurc for order in orders])
    assert risk_coverage(confidence, correct).aurc == pytest.approx(expected)


def test_scores_map_onto_the_summary():
    confidence, correct = np.array([0.9, 0.8, 0.4, 0.3]), np.array([True, False, True, False])
    scores = selective_scores(confidence, correct, threshold=0.8, photographs=np.array(["a", "b", "c", "d"]))
    assert scores["target_error"] == 0.05
    assert (scores["threshold"], scores["coverage"], scores["error"]) == (0.8, 0.5, 0.5)
    assert scores["error_ci95_photographs"] == [0.0, 1.0]
    unknown = selective_scores(confidence, correct, threshold=0.8)
    assert (unknown["error"], unknown["error_ci95_photographs"]) == (0.5, None)  # images are no photographs
    nothing = selective_scores(confidence, correct, threshold=None)
    assert (nothing["threshold"], nothing["coverage"], nothing["error"]) == (None, None, None)
    unreached = selective_scores(confidence, correct, threshold=0.99)
    assert (unreached["coverage"], unreached["error"], unreached["error_ci95_photographs"]) == (0.0, None, None)


def test_bad_input_is_refused():
    one = np.ones(1)
    assert choose_threshold(one, one.astype(bool)).threshold is None
    with pytest.raises(UserError, match="target_error must be above 0 and below 1, not 0"):
        choose_threshold(one, one.astype(bool), target_error=0)
    for function in (choose_threshold, risk_coverage):
        with pytest.raises(UserError, match="no images"):
            function(one[:0], one[:0].astype(bool))
        with pytest.raises(UserError, match="1 of 1 images have NaN or infinite confidence"):
            function(one * np.nan, one.astype(bool))
