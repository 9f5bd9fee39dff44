"""Scores by photograph: copies vote, and each class has intervals that count photographs."""

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_f1_score, multiclass_precision, multiclass_recall

from fish_lightning.errors import UserError
from fish_lightning.evaluation.bootstrap import wilson_interval
from fish_lightning.evaluation.scores import class_scores, mean_by_photograph, vote_scores


def test_confident_copies_outvote_a_doubtful_one():
    probabilities = np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8]])
    votes = vote_scores(probabilities, np.array([0, 0, 0]), np.array(["p", "p", "q"]))
    assert votes == {"accuracy": 0.5, "accuracy_ci95": list(wilson_interval(1, 2)), "photographs": 2}


def test_copies_that_are_labeled_differently_are_kept_apart():
    means = mean_by_photograph(np.eye(2)[[0, 0, 1]], np.array([0, 1, 1]), np.array(["p", "p", "p"]))
    assert means.labels.tolist() == [0, 1]
    assert means.index.tolist() == [0, 1, 1]
    assert means.probabilities.tolist() == [[1, 0], [0.5, 0.5]]


def test_class_scores_agree_with_torchmetrics():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 300)
    preds = np.where(rng.random(300) < 0.7, labels, rng.integers(0, 4, 300))
    scores = class_scores(preds, labels, 4)
    functions = {"precision": multiclass_precision, "recall": multiclass_recall, "f1": multiclass_f1_score}
    for name, function in functions.items():
        expected = function(torch.from_numpy(preds), torch.from_numpy(labels), 4, average="none").tolist()
        assert [score[name] for score in scores] == pytest.approx(expected)
        assert all(score[f"{name}_ci95"][0] < score[name] < score[f"{name}_ci95"][1] for score in scores)
    assert sum(score["n"] for score in scores) == 300


def test_copies_make_intervals_no_narrower():
    rng = np.random.default_rng(0)
    labels, preds = rng.integers(0, 2, (2, 80))
    single = class_scores(preds, labels, 2)[0]
    copied = class_scores(np.repeat(preds, 20), np.repeat(labels, 20), 2, np.repeat(np.arange(80), 20))[0]
    assert copied["photographs"] == single["photographs"] == single["n"] == copied["n"] / 20
    for name in ("precision_ci95", "recall_ci95", "f1_ci95"):
        assert copied[name] == pytest.approx(single[name], abs=0.02)


def test_a_class_never_predicted_has_no_precision():
    labels, preds = np.array([0, 0, 1, 1]), np.zeros(4, dtype=int)
    never, absent = class_scores(preds, labels, 3)[1:]
    assert (never["precision"], never["precision_ci95"], never["recall"], never["f1"]) == (None, None, 0, 0)
    assert never["recall_ci95"] == pytest.approx(wilson_interval(0, 2))
    assert (absent["precision"], absent["recall"], absent["f1"], absent["n"]) == (None, None, None, 0)


def test_a_test_set_of_one_class_and_of_one_image():
    one_class = class_scores(np.zeros(36, dtype=int), np.zeros(36, dtype=int), 2)[0]
    assert one_class["recall"] == 1
    assert one_class["recall_ci95"] == pytest.approx([0.9036, 1], abs=1e-4)
    assert vote_scores(np.array([[0.3, 0.7]]), np.array([1]))["photographs"] == 1


def test_bad_input_is_refused():
    with pytest.raises(UserError, match="1 of 2 images have NaN or infinite probabilities"):
        vote_scores(np.array([[0.5, 0.5], [np.nan, 0]]), np.array([0, 1]))
    for arguments in ((vote_scores, np.ones((0, 2)), np.ones(0, dtype=int)),):
        with pytest.raises(UserError, match="no images"):
            arguments[0](*arguments[1:])
    with pytest.raises(UserError, match="no images"):
        class_scores(np.ones(0, dtype=int), np.ones(0, dtype=int), 2)
