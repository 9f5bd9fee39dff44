"""The CI clustered by photograph: 95 % coverage although predictions for copies are not independent."""

import numpy as np
import pytest

from fish_lightning.evaluation.scores import leak_sentence, photograph_interval, wilson_interval


def test_interval_covers_the_true_accuracy_and_wilsons_does_not():
    rng = np.random.default_rng(5)
    photographs, copies, trials = 60, 20, 300
    names = np.repeat(np.arange(photographs).astype(str), copies)
    truth = 0.8  # Beta(1.6, 0.4): most photographs are almost always recognized, some almost never
    covered = {"photographs": 0, "wilson": 0}
    for _ in range(trials):
        chance = rng.beta(1.6, 0.4, size=photographs)
        correct = rng.random(photographs * copies) < np.repeat(chance, copies)
        low, high = photograph_interval(correct, names, resamples=500)
        covered["photographs"] += low <= truth <= high
        low, high = wilson_interval(int(correct.sum()), len(correct))
        covered["wilson"] += low <= truth <= high
    assert 0.90 <= covered["photographs"] / trials <= 0.98
    assert covered["wilson"] / trials < 0.65


def test_interval_of_single_images_is_close_to_wilsons():
    correct = np.arange(400) % 10 != 0
    low, high = photograph_interval(correct, np.arange(400).astype(str))
    assert (low, high) == pytest.approx(wilson_interval(360, 400), abs=0.01)


@pytest.mark.parametrize(("right", "interval"), [(True, (0.9036, 1.0)), (False, (0.0, 0.0964))])
def test_interval_of_copies_without_an_error_is_not_certainty(right, interval):
    names = np.repeat(np.arange(36).astype(str), 20)
    assert photograph_interval(np.full(720, right), names) == pytest.approx(interval, abs=1e-4)


def test_interval_is_reproducible():
    correct = np.random.default_rng(1).random(100) < 0.7
    names = np.repeat(np.arange(10).astype(str), 10)
    assert photograph_interval(correct, names) == photograph_interval(correct, names)


def test_leak_sentence_contains_the_accuracy_without_leaked_images():
    test = {"leaked_test_images": 21, "n": 25, "without_leaked": {"accuracy": 0.25, "n": 4}}
    assert leak_sentence(test) == (
        "21 of 25 test images have a copy in training, so this score says little about unseen photographs; "
        "on the other 4 the accuracy is 25.00%"
    )
