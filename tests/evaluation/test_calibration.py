"""Calibration: the figures agree with torchmetrics, and the temperature finds what was done to the logits."""

import numpy as np
import pytest
import torch
from torchmetrics.classification import MulticlassCalibrationError

from fish_lightning.errors import UserError
from fish_lightning.evaluation.arrays import softmax
from fish_lightning.evaluation.calibration import (
    brier_score,
    calibration_scores,
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
    reliability_curve,
)


def honest_answers(n, classes=5, scale=2.0, seed=0):
    """Logits whose softmax is the very distribution that labels are drawn from."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, scale, (n, classes))
    return logits, (rng.gumbel(size=(n, classes)) + logits).argmax(axis=1)


@pytest.mark.parametrize("scale", [0.3, 2.0, 8.0])
def test_ece_agrees_with_torchmetrics(scale):
    logits, labels = honest_answers(2000, scale=2.0)
    probabilities = softmax(scale * logits)
    metric = MulticlassCalibrationError(num_classes=5, n_bins=15, norm="l1")
    expected = float(metric(torch.from_numpy(probabilities), torch.from_numpy(labels)))
    assert expected_calibration_error(probabilities, labels) == pytest.approx(expected, abs=1e-6)


def test_nll_and_brier_agree_with_their_definitions():
    logits, labels = honest_answers(500)
    loss = torch.nn.functional.cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels))
    assert negative_log_likelihood(logits, labels) == pytest.approx(float(loss))
    assert brier_score(np.array([[0.7, 0.2, 0.1], [0.0, 1.0, 0.0]]), np.array([1, 1])) == pytest.approx(
        (0.49 + 0.64 + 0.01) / 2
    )


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_the_temperature_undoes_what_was_done_to_honest_logits(temperature):
    logits, labels = honest_answers(20_000)
    assert fit_temperature(temperature * logits, labels) == pytest.approx(temperature, rel=0.05)


def test_the_temperature_minimizes_the_nll():
    logits, labels = honest_answers(300)
    fitted = fit_temperature(3 * logits, labels)
    best = negative_log_likelihood(3 * logits / fitted, labels)
    assert best <= min(negative_log_likelihood(3 * logits / t, labels) for t in fitted * np.geomspace(0.5, 2, 101))


def test_a_photograph_with_many_copies_does_not_set_the_temperature_alone():
    logits, labels = honest_answers(400)
    copied = np.concatenate([np.arange(400), np.repeat(7, 5000)])
    alone = fit_temperature(3 * logits, labels)
    assert fit_temperature(3 * logits[copied], labels[copied], copied.astype(str)) == pytest.approx(alone)
    assert fit_temperature(3 * logits[copied], labels[copied]) != pytest.approx(alone, rel=0.2)


def test_the_temperature_stays_1_where_no_error_says_how_sure_to_be():
    logits, _ = honest_answers(50)
    assert fit_temperature(logits, logits.argmax(axis=1)) == 1.0
    assert fit_temperature(np.zeros((4, 1)), np.zeros(4, dtype=int)) == 1.0  # a single class


def test_the_temperature_is_bounded_where_every_answer_is_wrong():
    logits, _ = honest_answers(50)
    assert fit_temperature(logits, logits.argmin(axis=1)) == pytest.approx(100, rel=1e-4)


def test_the_temperature_of_labels_of_one_class_and_of_one_image():
    logits, _ = honest_answers(200)
    assert 0.01 <= fit_temperature(logits, np.zeros(200, dtype=int)) <= 100
    assert fit_temperature(np.array([[2.0, 1.0]]), np.array([0])) == 1.0


def test_scores_map_onto_the_summary():
    logits, labels = honest_answers(3000)
    scores = calibration_scores((3 * logits).astype(np.float32), labels, temperature=3.0)
    assert set(scores) == {"ece", "nll", "brier", "temperature", "after"}
    assert set(scores["after"]) == {"ece", "nll", "brier"}
    assert scores["ece"] > 0.1
    assert scores["after"]["ece"] < 0.04
    assert scores["after"]["nll"] < scores["nll"]
    assert scores["after"]["brier"] < scores["brier"]
    assert calibration_scores(logits, labels)["after"] is None


def test_the_band_covers_an_honest_model_and_leaves_out_an_overconfident_one():
    logits, labels = honest_answers(400, scale=2)
    names = np.repeat(np.arange(400), 5)
    honest = reliability_curve(softmax(np.repeat(logits, 5, axis=0)), np.repeat(labels, 5), names, bins=5)
    full = honest.photographs > 20
    low, high = honest.accuracy_ci95[full].T
    assert ((low <= honest.confidence[full]) & (honest.confidence[full] <= high)).all()
    assert (honest.images == 5 * honest.photographs).all()
    boastful = reliability_curve(softmax(4 * logits), labels, bins=5)
    assert boastful.accuracy_ci95[-1, 1] < boastful.confidence[-1]


def test_copies_make_the_band_no_narrower():
    logits, labels = honest_answers(60)
    single = reliability_curve(softmax(logits), labels)
    copied = reliability_curve(np.repeat(softmax(logits), 20, axis=0), np.repeat(labels, 20), np.repeat(range(60), 20))
    filled = single.images > 0
    widths = (np.diff(curve.accuracy_ci95[filled], axis=1) for curve in (copied, single))
    assert np.allclose(*widths, atol=0.05)


def test_a_certain_image_belongs_to_the_last_bin_and_empty_bins_are_nan():
    curve = reliability_curve(np.array([[1.0, 0.0]]), np.array([0]))
    assert curve.images.tolist() == [0] * 14 + [1]
    assert np.isnan(curve.accuracy[:14]).all()
    assert np.isnan(curve.accuracy_ci95[:14]).all()
    assert curve.accuracy[14] == 1
    assert curve.accuracy_ci95[14] == pytest.approx([0.2065, 1], abs=1e-3)


@pytest.mark.parametrize("function", [fit_temperature, calibration_scores])
def test_nan_logits_and_no_images_are_refused(function):
    logits, labels = honest_answers(10)
    logits[:3, 1] = np.nan
    with pytest.raises(UserError, match="3 of 10 images have NaN or infinite logits"):
        function(logits, labels)
    with pytest.raises(UserError, match="no images"):
        function(logits[:0], labels[:0])
