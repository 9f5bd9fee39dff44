"""Scores, compared with published intervals and results computed by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fish_lightning.data.catalog import make_catalog
from fish_lightning.errors import UserError
from fish_lightning.evaluation.outputs import Predictions
from fish_lightning.evaluation.scores import score_test, wilson_interval


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    [
        # R. G. Newcombe, Statistics in Medicine 17 (1998) 857-872, table I, method 3 (Wilson without correction).
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
        # z^2 / (n + z^2) at both ends.
        (0, 10, 0.0000, 0.2775),
        (10, 10, 0.7225, 1.0000),
    ],
)
def test_wilson_intervals_equal_published_ones(correct, n, low, high):
    assert wilson_interval(correct, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_intervals_are_symmetric_and_between_0_and_1():
    for correct in range(31):
        low, high = wilson_interval(correct, 30)
        assert 0.0 <= low <= correct / 30 <= high <= 1.0
        assert wilson_interval(30 - correct, 30) == pytest.approx((1 - high, 1 - low))


def test_wilson_intervals_narrow_with_n_and_widen_with_confidence():
    widths = [high - low for low, high in (wilson_interval(n * 9 // 10, n) for n in (10, 100, 1000, 10000))]
    assert widths == sorted(widths, reverse=True)
    low, high = wilson_interval(90, 100, z=2.5758)
    assert low < wilson_interval(90, 100)[0] and high > wilson_interval(90, 100)[1]


@pytest.fixture
def scores():
    """Six images of three classes: labels 0 0 0 1 1 2, predicted 0 0 1 1 0 1; indices 1 to 6 of the catalog."""
    labels, preds = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 0, 1])
    logits = np.zeros((6, 3), np.float32)
    logits[np.arange(6), preds] = 2
    names = ["bass", "bass", "bass", "bass", "eel", "eel", "trout", "trout"]
    catalog = make_catalog(Path("photos"), [(f"{i}.png", name, "", "") for i, name in enumerate(names)])
    logged = {"test/macro_f1": torch.tensor(0.35), "test/loss": torch.tensor(0.9)}
    predictions = Predictions(np.arange(1, 7), labels, logits, np.zeros((6, 2), np.float16))
    return score_test(predictions, catalog, ["bass", "eel", "trout"], logged)


def test_scores_per_class_equal_those_computed_by_hand(scores):
    assert scores["per_class"] == {
        "bass": {"precision": pytest.approx(2 / 3), "recall": pytest.approx(2 / 3), "n": 3},
        "eel": {"precision": pytest.approx(1 / 3), "recall": pytest.approx(1 / 2), "n": 2},
        "trout": {"precision": None, "recall": 0.0, "n": 1},  # never predicted
    }


def test_scores_of_a_class_without_test_images_are_undefined():
    rows = [(f"{i}.png", name, "", "") for i, name in enumerate(["bass", "eel", "trout"])]
    predictions = Predictions(np.arange(2), np.array([0, 1]), np.eye(3, dtype="f4")[[0, 2]], np.zeros((2, 2), "f2"))
    logged = {"test/macro_f1": torch.tensor(0.35), "test/loss": torch.tensor(0.9)}
    scores = score_test(predictions, make_catalog(Path("photos"), rows), ["bass", "eel", "trout"], logged)
    assert scores["per_class"]["eel"] == {"precision": None, "recall": 0.0, "n": 1}
    assert scores["per_class"]["trout"] == {"precision": 0.0, "recall": None, "n": 0}


@pytest.mark.parametrize(("logit", "loss"), [(np.nan, 0.9), (np.inf, 0.9), (0.0, np.nan), (0.0, np.inf)])
def test_a_model_that_diverged_has_no_scores(logit, loss):
    rows = [(f"{i}.png", name, "", "") for i, name in enumerate(["bass", "eel"])]
    logits = np.array([[logit, 1], [0, 1]], np.float32)
    predictions = Predictions(np.arange(2), np.array([0, 1]), logits, np.zeros((2, 2), np.float16))
    logged = {"test/macro_f1": torch.tensor(0.35), "test/loss": torch.tensor(loss)}
    with pytest.raises(UserError, match="the model diverged in training"):
        score_test(predictions, make_catalog(Path("photos"), rows), ["bass", "eel"], logged)


def test_confusion_matrix_has_true_classes_in_rows_and_predicted_ones_in_columns(scores):
    assert scores["confusion_matrix"] == [[2, 1, 0], [1, 1, 0], [0, 1, 0]]


def test_accuracy_has_an_interval_and_n(scores):
    assert (scores["accuracy"], scores["n"]) == (0.5, 6)
    assert scores["accuracy_ci95"] == pytest.approx(wilson_interval(3, 6))
    assert scores["macro_f1"] == pytest.approx(0.35) and scores["loss"] == pytest.approx(0.9)


def test_scores_by_photograph_are_none_if_photographs_are_unknown(scores):
    assert scores["photographs"] is scores["accuracy_ci95_photographs"] is scores["leaked_test_images"] is None


def test_scores_can_be_written_as_json(scores):
    assert json.loads(json.dumps(scores)) == scores


def test_images_of_unknown_photograph_are_photographs_of_their_own():
    rows = [(f"{i}.png", "ab"[i % 2], "shot" if i < 2 else "", "") for i in range(6)]
    logits = np.eye(2, dtype=np.float32)[[0, 1, 0, 0, 1, 1]]
    predictions = Predictions(np.arange(6), np.arange(6) % 2, logits, np.zeros((6, 2), np.float16))
    logged = {"test/macro_f1": torch.tensor(0.5), "test/loss": torch.tensor(0.5)}
    scores = score_test(predictions, make_catalog(Path("photos"), rows), ["a", "b"], logged)
    assert scores["photographs"] == 5  # two copies of one, and four others
    low, high = scores["accuracy_ci95_photographs"]
    assert low < 0.5 < high
