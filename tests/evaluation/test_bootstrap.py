"""The cluster bootstrap that every interval rests on."""

import numpy as np
import pytest

from fish_lightning.errors import UserError
from fish_lightning.evaluation.arrays import equal_weights, photograph_index, require_finite
from fish_lightning.evaluation.bootstrap import BLOCK, ratio_interval, resampled_counts, wilson_interval


def test_unknown_photographs_make_every_image_its_own():
    assert photograph_index(None, 3).tolist() == [0, 1, 2]
    assert photograph_index(np.array(["b", "a", "b"]), 3).tolist() == [1, 0, 1]


def test_photographs_weigh_equally_however_many_copies_they_have():
    assert equal_weights(np.array([0, 1, 1, 1, 1])) == pytest.approx([0.5, 0.125, 0.125, 0.125, 0.125])


def test_no_images_are_refused():
    with pytest.raises(UserError, match="there are no images"):
        photograph_index(None, 0)


def test_nan_is_refused_with_the_number_of_images():
    with pytest.raises(UserError, match=r"2 of 3 images have NaN or infinite logits"):
        require_finite(np.array([[0.0, np.nan], [np.inf, np.nan], [0.0, 1.0]]), "logits")


def test_the_interval_covers_the_truth_where_images_of_a_photograph_succeed_together():
    rng, covered, trials = np.random.default_rng(5), 0, 300
    for _ in range(trials):
        sizes = rng.integers(1, 21, size=60)
        right = rng.binomial(sizes, rng.beta(1.6, 0.4, size=60))  # mean 0.8
        low, high = ratio_interval(right, sizes, resamples=500)
        covered += low <= 0.8 <= high
    assert 0.90 <= covered / trials <= 0.98


def test_drawing_equal_photographs_together_changes_nothing_but_the_time():
    rng = np.random.default_rng(2)
    right = rng.random(200) < 0.7
    weights = 1 + 1e-9 * rng.random(200)  # so that no two photographs are equal
    together, apart = ratio_interval(right, np.ones(200)), ratio_interval(right * weights, weights)
    assert together == pytest.approx(apart, abs=0.01)
    assert together == pytest.approx(wilson_interval(int(right.sum()), 200), abs=0.01)


def test_without_spread_it_is_wilsons_with_photographs_as_trials():
    sizes = np.full(36, 20)
    for right in (36, 0, 18):
        assert ratio_interval(sizes * right / 36, sizes) == pytest.approx(wilson_interval(right, 36))


def test_a_share_of_nothing_has_no_interval():
    assert np.isnan(ratio_interval(np.zeros(5), np.zeros(5))).all()


def test_draws_come_in_blocks_of_bounded_size():
    ones = np.ones(50_000, dtype=np.int64)
    blocks = list(resampled_counts(ones, 100, 50_000, np.random.default_rng(0)))
    assert all(block.size <= BLOCK and (block.sum(axis=1) == 50_000).all() for block in blocks)
    assert sum(len(block) for block in blocks) == 100
