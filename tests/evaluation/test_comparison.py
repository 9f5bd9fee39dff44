"""A against B: the interval of the difference covers the truth, and verdicts follow from it."""

import math

import numpy as np
import pytest

from fish_lightning.errors import UserError
from fish_lightning.evaluation.comparison import (
    common_images,
    compare,
    exact_mcnemar,
    joined_photographs,
    photographs_to_decide,
)


@pytest.mark.parametrize(
    ("only_a", "only_b", "photographs", "copies"),
    [(0.1, 0.1, 60, 20), (0.02, 0.02, 60, 20), (0.03, 0.10, 60, 20), (0.0, 0.1, 60, 20), (0.05, 0.15, 200, 1)],
)
def test_the_interval_covers_the_difference_where_copies_flip_together(only_a, only_b, photographs, copies):
    rng, covered, trials = np.random.default_rng(3), 0, 200
    for _ in range(trials):
        names = np.repeat(np.arange(photographs), rng.integers(1, copies + 1, photographs))
        # both right, only A, only B, neither
        outcome = rng.choice(4, p=[0.8 - only_a - only_b, only_a, only_b, 0.2], size=photographs)[names]
        outcome = np.where(rng.random(len(names)) < 0.1, rng.choice([0, 3], size=len(names)), outcome)
        result = compare(outcome < 2, outcome % 2 == 0, names, resamples=500)
        low, high = result["difference_ci95_photographs"]
        covered += low <= 0.9 * (only_b - only_a) <= high
    assert covered / trials >= 0.92


def test_a_better_model_is_called_better_and_worse_the_other_way_round():
    a = np.arange(300) % 5 > 0
    b = np.arange(300) % 20 > 0
    result = compare(a, b, np.arange(300).astype(str))
    assert result["verdict"] == "better"
    assert result["accuracy"] == {"a": 0.8, "b": 0.95}
    assert result["difference"] == pytest.approx(0.15)
    assert (result["only_a_right"], result["only_b_right"]) == (0, 45)
    assert result["mcnemar_p"] == pytest.approx(2 * 0.5**45)
    assert result["photographs_to_decide"] is None
    assert result["sentence"].startswith("B is better than A (B - A = +15.0 percentage points, 95% CI +")
    mirrored = compare(b, a, np.arange(300).astype(str))
    assert mirrored["verdict"] == "worse"
    low, high = result["difference_ci95_photographs"]
    assert mirrored["difference_ci95_photographs"] == pytest.approx([-high, -low], abs=0.01)


def test_flips_are_counted_by_image_and_by_photograph():
    names = np.repeat(["p", "q", "r"], [3, 2, 1])
    a = np.array([1, 1, 0, 0, 1, 1], dtype=bool)
    b = np.array([0, 0, 1, 1, 1, 1], dtype=bool)
    result = compare(a, b, names)
    assert (result["n"], result["photographs"]) == (6, 3)
    assert (result["only_a_right"], result["only_b_right"]) == (2, 2)
    assert (result["photographs_better_in_a"], result["photographs_better_in_b"]) == (1, 1)
    assert result["mcnemar_p"] is None
    assert "independent images" in result["mcnemar_note"]


def test_models_that_never_differ_are_not_certain_to_be_equal():
    right, names = np.ones(720, dtype=bool), np.repeat(np.arange(36), 20)
    result = compare(right, right, names)
    low, high = result["difference_ci95_photographs"]
    assert 2 / 36 < high < 4 / 36  # the rule of three: 3 / 36
    assert low == pytest.approx(-high, abs=0.03)
    assert result["verdict"] == "not decided"
    assert 36 < result["photographs_to_decide"] < 36 * 400
    many = compare(np.ones(2000, dtype=bool), np.ones(2000, dtype=bool))
    assert many["verdict"] == "equivalent"
    assert many["sentence"].startswith("A and B are equivalent within 1 percentage point (")


def test_four_photographs_all_for_one_model_decide_nothing():
    names, a = np.repeat(np.arange(60), 20), np.ones(1200, dtype=bool)
    a[: 4 * 20] = False
    assert compare(a, np.ones(1200, dtype=bool), names)["verdict"] == "not decided"
    a[: 8 * 20] = False
    assert compare(a, np.ones(1200, dtype=bool), names)["verdict"] == "better"


def test_the_estimated_number_of_photographs_decides():
    rng = np.random.default_rng(0)

    def draw(n):
        outcome = rng.choice(4, p=[0.77, 0.05, 0.08, 0.1], size=n)
        return compare(outcome < 2, outcome % 2 == 0, margin=0.0, resamples=500)

    needed = photographs_to_decide(0.03, 1.96 * math.sqrt((0.13 - 0.03**2) / 300), 300, margin=0)
    assert needed == pytest.approx((2.8 / 0.03) ** 2 * (0.13 - 0.03**2), rel=0.01)
    assert 0.7 < np.mean([draw(needed)["verdict"] == "better" for _ in range(60)]) < 0.92


def test_equivalence_needs_fewer_photographs_where_models_hardly_differ():
    assert photographs_to_decide(0.001, 0.02, 100, margin=0.01) == math.ceil(100 * (0.02 / 0.009 * 2.8016 / 1.96) ** 2)
    assert photographs_to_decide(0.0, 0.02, 100, margin=0.0) is None


@pytest.mark.parametrize(("a", "b"), [(0, 0), (1, 0), (3, 9), (10, 10), (40, 21), (0, 60)])
def test_mcnemar_agrees_with_whole_numbers(a, b):
    exact = 2 * sum(math.comb(a + b, k) for k in range(min(a, b) + 1)) / 2 ** (a + b)
    assert exact_mcnemar(a, b) == pytest.approx(min(1.0, exact))


def test_mcnemar_of_a_hundred_thousand_images_is_a_number():
    assert 0 < exact_mcnemar(50_300, 49_700) < 0.1


def test_unknown_photographs_are_said():
    result = compare(np.array([True, False]), np.array([False, True]))
    assert result["photographs"] is None
    assert result["mcnemar_p"] == 1
    assert result["mcnemar_note"] == "exact if images are independent: photographs are not known"


def test_a_single_image_decides_nothing():
    result = compare(np.array([False]), np.array([True]), np.array(["p"]))
    assert (result["difference"], result["verdict"]) == (1, "not decided")


def test_runs_are_compared_on_the_images_they_share():
    in_a, in_b = common_images(["c", "a", "b"], ["b", "d", "c"])
    assert (in_a.tolist(), in_b.tolist()) == ([2, 0], [0, 2])


def test_runs_that_share_no_image_or_repeat_one_are_refused():
    with pytest.raises(UserError, match="A was tested on 2 images and B on 1, and they share none"):
        common_images(["a", "b"], ["c"])
    with pytest.raises(UserError, match="B tests 1 image more than once"):
        common_images(["a"], ["c", "c"])
    with pytest.raises(UserError, match="no images"):
        compare(np.ones(0, dtype=bool), np.ones(0, dtype=bool))


def test_images_that_either_run_takes_for_copies_are_one_photograph():
    a = np.array(["p", "p", "q", "q", "r", "s"])
    b = np.array(["1", "2", "2", "3", "4", "5"])
    assert joined_photographs(a, b).tolist() == [0, 0, 0, 0, 4, 5]
    chain = np.arange(1000)
    assert set(joined_photographs(chain // 2, (chain + 1) // 2)) == {0}
