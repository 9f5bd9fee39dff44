"""Unknowns: scores agree with their definitions, their figures with torchmetrics, and intervals count photographs."""

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import binary_auroc

from fish_lightning.errors import UserError
from fish_lightning.evaluation.unknowns import (
    best_score,
    detection,
    image_scores,
    keep_threshold,
    neighbor_score,
)


def test_scores_of_logits_agree_with_torch():
    logits = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)) * 5
    scores = image_scores(logits.numpy(), np.ones((50, 2)))
    assert scores["max_softmax"] == pytest.approx(logits.softmax(1).amax(1).numpy(), abs=1e-6)
    assert scores["max_logit"] == pytest.approx(logits.amax(1).numpy())
    assert scores["energy"] == pytest.approx(logits.logsumexp(1).numpy(), abs=1e-5)


def test_the_feature_norm_is_that_of_each_row():
    assert image_scores(np.zeros((2, 3)), np.array([[3.0, 4], [0, 2]]))["feature_norm"] == pytest.approx([5, 2])


def test_copies_of_a_training_photograph_count_once():
    image, training = np.array([[3.0, 0]]), np.array([[1, 0], [1, 0.01], [1, 0.02], [0, 1]], dtype=np.float16)
    assert neighbor_score(image, training, np.array(["a", "a", "a", "b"]), k=2) == pytest.approx([0], abs=1e-6)
    assert neighbor_score(image, training, None, k=2) == pytest.approx([1], abs=1e-3)


def test_fewer_training_photographs_than_k_give_the_farthest():
    assert neighbor_score(np.array([[1.0, 1]]), np.array([[1.0, 0]])) == pytest.approx([0.5**0.5])


@pytest.mark.parametrize("decimals", [8, 1], ids=["no ties", "ties"])
def test_figures_agree_with_torchmetrics(decimals):
    rng = np.random.default_rng(0)
    known, unknown = rng.normal(1, 1, 300).round(decimals), rng.normal(0, 1, 200).round(decimals)
    found = detection(known, unknown, resamples=50)
    scores, labels = torch.from_numpy(np.concatenate([known, unknown]) / 20 + 0.5), torch.arange(500) < 300
    assert found["auroc"] == pytest.approx(float(binary_auroc(scores, labels.int())), abs=1e-6)
    threshold = np.sort(known)[15]  # keeps 285 of 300
    assert found["fpr95"] == pytest.approx((unknown >= threshold).mean())


def test_the_auroc_interval_covers_the_truth_where_copies_score_alike():
    rng, covered, trials = np.random.default_rng(1), 0, 200
    truth = 0.5 * (1 + torch.erf(torch.tensor(1.0 / 2)).item())  # P(N(1, 1) > N(0, 1)), variances added up
    names = np.repeat(np.arange(40), 10)
    for _ in range(trials):
        known = 1 + np.repeat(rng.normal(0, 0.9**0.5, 40), 10) + rng.normal(0, 0.1**0.5, 400)
        unknown = np.repeat(rng.normal(0, 0.9**0.5, 40), 10) + rng.normal(0, 0.1**0.5, 400)
        low, high = detection(known, unknown, names, names, resamples=200)["auroc_ci95"]
        covered += low <= truth <= high
    assert covered / trials >= 0.90


def test_complete_separation_is_no_certainty():
    found = detection(np.full(100, 2.0), np.ones(60), np.repeat(np.arange(50), 2), np.repeat(np.arange(20), 3))
    assert (found["auroc"], found["fpr95"]) == (1, 0)
    assert found["auroc_ci95"] == pytest.approx((0.8389, 1), abs=1e-3)  # Wilson, 20 of 20
    assert found["fpr95_ci95"] == pytest.approx((0, 0.1611), abs=1e-3)


def test_one_image_on_each_side_is_measured():
    found = detection(np.array([1.0]), np.array([2.0]))
    assert (found["auroc"], found["fpr95"]) == (0, 1)


def test_blocks_of_draws_change_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    known, unknown = rng.normal(1, 1, 80), rng.normal(0, 1, 50)
    whole = detection(known, unknown, resamples=100)
    monkeypatch.setattr("fish_lightning.evaluation.bootstrap.BLOCK", 1000)
    assert detection(known, unknown, resamples=100) == whole


def test_the_threshold_keeps_95_percent_of_photographs_not_of_images():
    names = np.concatenate([np.arange(99), np.repeat(99, 900)])  # one photograph has nine images of ten
    scores = np.concatenate([np.arange(1.0, 100), np.zeros(900)])
    threshold = keep_threshold(scores, names)
    assert threshold == 4.5  # leaves out the photographs of 0 to 4
    assert keep_threshold(scores) == -1e-4


@pytest.mark.parametrize("photographs", [1, 19, 20, 21, 60, 1350])
def test_never_less_than_95_percent_are_kept(photographs):
    scores = np.random.default_rng(0).random(photographs).round(1)
    threshold = keep_threshold(scores)
    kept = scores[scores >= threshold]
    assert len(kept) / photographs >= 0.95 > (kept > kept.min()).sum() / photographs
    assert np.abs(scores - threshold).min() > 5e-5, "an image is on the threshold"


def test_the_best_score_has_the_highest_auroc():
    figures = {"a": (0.9, 0.5), "b": (0.95, 0.4), "c": (0.95, 0.3)}
    assert best_score({name: {"auroc": a, "fpr95": f} for name, (a, f) in figures.items()}) == "c"


def test_bad_input_is_refused():
    with pytest.raises(UserError, match="no images"):
        detection(np.ones(3), np.ones(0))
    with pytest.raises(UserError, match="no images"):
        keep_threshold(np.ones(0))
    with pytest.raises(UserError, match="1 of 2 images have NaN or infinite logits"):
        image_scores(np.array([[0, np.nan], [0, 1]]), np.ones((2, 2)))
    with pytest.raises(UserError, match="1 of 1 images have NaN or infinite features"):
        neighbor_score(np.array([[np.inf, 1.0]], dtype=np.float16), np.ones((2, 2)))
