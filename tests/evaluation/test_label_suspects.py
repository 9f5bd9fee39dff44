"""Label suspects: planted errors are found by photograph, as cleanlab finds them by image."""

import numpy as np
import pytest

from fish_lightning.errors import UserError
from fish_lightning.evaluation.arrays import softmax
from fish_lightning.evaluation.label_suspects import find_label_suspects

CLASSES, PHOTOGRAPHS, COPIES, DIMENSIONS = 9, 450, 5, 16


def discriminant(training, labels, queries):
    """Logits of linear discriminant analysis, a classifier in five lines."""
    means = np.stack([training[labels == label].mean(axis=0) for label in range(CLASSES)])
    within = np.cov((training - means[labels]).T)
    weights = np.linalg.solve(within, means.T)
    return queries @ weights - 0.5 * (means * weights.T).sum(axis=1)


def planted(seed):
    """Out-of-sample probabilities (folds by photograph) with 5 % of photographs mislabeled, all copies alike.

    Returns:
        Probabilities, given labels and photographs of the images; true labels and mislabeled ones of the photographs.
    """
    rng = np.random.default_rng(seed)
    truth = np.repeat(np.arange(CLASSES), PHOTOGRAPHS // CLASSES)
    given = truth.copy()
    wrong = rng.choice(PHOTOGRAPHS, PHOTOGRAPHS // 20, replace=False)
    given[wrong] = (truth[wrong] + rng.integers(1, CLASSES, len(wrong))) % CLASSES
    centers = 1.75 * rng.normal(size=(CLASSES, DIMENSIONS))
    names = np.repeat(np.arange(PHOTOGRAPHS), COPIES)
    features = (centers[truth] + rng.normal(size=(PHOTOGRAPHS, DIMENSIONS)))[names]
    features = features + rng.normal(0, 0.7, size=features.shape)
    fold, probabilities = rng.permutation(PHOTOGRAPHS)[names] % 5, np.zeros((len(names), CLASSES))
    for held_out in range(5):
        test = fold == held_out
        probabilities[test] = softmax(discriminant(features[~test], given[names[~test]], features[test]))
    return probabilities, given[names], names, truth, set(wrong.tolist())


def test_planted_errors_are_found():
    found, planted_errors, hits, right = 0, 0, 0, 0
    for seed in range(5):
        probabilities, labels, names, truth, wrong = planted(seed)
        suspects = find_label_suspects(probabilities, labels, names)
        photographs = [int(names[suspect.images[0]]) for suspect in suspects]
        found, planted_errors, hits = (
            found + len(suspects),
            planted_errors + len(wrong),
            hits + len(wrong & {*photographs}),
        )
        right += sum(suspect.suggested == truth[name] for suspect, name in zip(suspects, photographs, strict=True))
        for suspect in suspects:
            assert len(suspect.images) == COPIES
            assert set(labels[suspect.images]) == {suspect.given}
            assert suspect.suggested_probability > suspect.given_probability
        margins = [suspect.suggested_probability - suspect.given_probability for suspect in suspects]
        assert margins == sorted(margins, reverse=True)
    assert hits / found >= 0.9  # precision
    assert hits / planted_errors >= 0.9  # recall
    assert right / found >= 0.9  # the true class is suggested


def test_single_images_agree_with_cleanlab():
    find_label_issues = pytest.importorskip("cleanlab.filter", reason="cleanlab is not installed").find_label_issues
    probabilities, labels, *_ = planted(0)
    doubtful = softmax(0.3 * np.log(probabilities + 1e-12))  # so that classes compete
    for given in (probabilities, doubtful):
        issues = find_label_issues(labels, given, filter_by="confident_learning", n_jobs=1)
        found = {int(suspect.images[0]) for suspect in find_label_suspects(given, labels, certain=1)}
        assert len(found) > 50
        assert found == set(np.flatnonzero(issues).tolist())


def test_a_class_that_is_always_recognized_has_suspects_below_its_mean():
    labels = np.repeat([0, 1, 2], 10)
    probabilities = np.full((30, 3), 0.005)
    probabilities[np.arange(30), labels] = 0.99
    probabilities[0] = [0.03, 0.92, 0.05]  # a mislabeled one, less sure than the mean of class 1
    probabilities[20] = [0.75, 0.2, 0.05]  # an error of the model
    assert find_label_suspects(probabilities, labels, certain=1) == []
    (suspect,) = find_label_suspects(probabilities, labels)
    assert (suspect.images.tolist(), suspect.given, suspect.suggested) == ([0], 0, 1)


def test_a_weak_model_contradicts_no_label_where_confidence_is_required():
    probabilities, labels = np.tile([0.39, 0.37, 0.24], (30, 1)), np.repeat([0, 1, 2], 10)
    assert len(find_label_suspects(probabilities, labels)) == 20
    assert find_label_suspects(probabilities, labels, confident=0.5) == []


def test_copies_that_are_labeled_differently_are_suspected_apart():
    probabilities = np.array([[0.9, 0.1]] * 12 + [[0.1, 0.9]] * 9)
    labels = np.array([0] * 11 + [1] * 10)
    (suspect,) = find_label_suspects(probabilities, labels, np.array([*"abcdefghijj", *"jklmnopqrs"]))
    assert (suspect.images.tolist(), suspect.given, suspect.suggested) == ([11], 1, 0)


def test_one_class_one_image_or_no_disagreement_gives_no_suspects():
    assert find_label_suspects(np.array([[0.4, 0.6]] * 3), np.array([0, 0, 0])) == []
    assert find_label_suspects(np.array([[1.0]]), np.array([0])) == []
    assert find_label_suspects(np.eye(3), np.arange(3)) == []


def test_bad_input_is_refused():
    with pytest.raises(UserError, match="no images"):
        find_label_suspects(np.ones((0, 2)), np.ones(0, dtype=int))
    with pytest.raises(UserError, match="1 of 2 images have NaN or infinite probabilities"):
        find_label_suspects(np.array([[0.5, 0.5], [np.nan, 0]]), np.array([0, 1]))
