"""Every interval holds the truth in about 95 % of draws where copies of a photograph succeed and fail together.

Each simulation also shows that the same interval does not, with photographs withheld: images are not independent. Draws
are keyed by their number, so the shares are the same everywhere; of 200 draws the standard error is 1.5 %. A quarter of
them suffices for the interval that is wrong.
"""

import math
from statistics import NormalDist

import numpy as np
import pytest

from fish_lightning.evaluation.calibration import reliability_curve
from fish_lightning.evaluation.comparison import compare
from fish_lightning.evaluation.scores import class_scores, photograph_interval, vote_scores
from fish_lightning.evaluation.unknowns import detection

DRAWS, COPIES = 200, 8


def views(draw, names):
    """Return 0 and the photographs; in every fourth draw also 1 and None: images taken for independent."""
    return [(0, names)] + [(1, None if isinstance(names, np.ndarray) else (None, None))] * (draw % 4 == 0)


def covered(interval, truth):
    return bool(interval[0] <= truth <= interval[1])


def names_of(photographs):
    return np.repeat(np.arange(photographs), COPIES)


def answers(rng, accuracy, photographs):
    """(N,) whether copies are right: their chance varies between photographs (Beta, intraclass correlation 0.5)."""
    return rng.random(photographs * COPIES) < np.repeat(rng.beta(accuracy, 1 - accuracy, photographs), COPIES)


@pytest.mark.parametrize(("accuracy", "photographs"), [(0.5, 10), (0.8, 10), (0.95, 20), (0.95, 36), (0.98, 60)])
def test_accuracy_of_few_photographs_and_near_1(accuracy, photographs):
    by_photograph, by_image = [], []
    for draw in range(DRAWS):
        correct = answers(np.random.default_rng([1, draw]), accuracy, photographs)
        by_photograph.append(covered(photograph_interval(correct, names_of(photographs), 300), accuracy))
        by_image.append(covered(photograph_interval(correct, np.arange(len(correct)), 300), accuracy))
    assert np.mean(by_photograph) >= 0.92
    assert np.mean(by_image) < 0.8


@pytest.mark.parametrize("photographs", [8, 30])
def test_precision_recall_and_f1_of_each_class(photographs):
    """Three classes; a wrong photograph is taken for the next class."""
    recall = np.array([0.9, 0.7, 0.5])
    precision = recall / (recall + np.roll(1 - recall, 1))
    truth = {"recall": recall, "precision": precision, "f1": 2 * recall * precision / (recall + precision)}
    labels, names = np.repeat(np.arange(3), photographs * COPIES), names_of(3 * photographs)
    by_photograph, by_image = ({name: [] for name in truth} for _ in range(2))
    for draw in range(DRAWS):
        rng = np.random.default_rng([2, draw])
        right = np.concatenate([answers(rng, share, photographs) for share in recall])
        preds = np.where(right, labels, (labels + 1) % 3)
        for wrong, known in views(draw, names):
            covers = (by_photograph, by_image)[wrong]
            for label, scores in enumerate(class_scores(preds, labels, 3, known, resamples=150)):
                for name, of in truth.items():
                    covers[name].append(covered(scores[f"{name}_ci95"], of[label]))
    assert min(np.mean(covers) for covers in by_photograph.values()) >= 0.92
    assert max(np.mean(covers) for covers in by_image.values()) < 0.85


def test_the_band_of_the_reliability_diagram():
    """Copies share their confidence, spread evenly from 0.5 to 1, and fate: in each bin its middle is right."""
    photographs, by_photograph, by_image = 150, [], []
    for draw in range(DRAWS):
        rng = np.random.default_rng([3, draw])
        confidence = np.repeat(rng.uniform(0.5, 1, photographs), COPIES)
        labels = np.repeat(rng.random(photographs), COPIES) > confidence
        probabilities = np.stack([confidence, 1 - confidence], axis=1)
        for wrong, known in views(draw, names_of(photographs)):
            covers = (by_photograph, by_image)[wrong]
            curve = reliability_curve(probabilities, labels.astype(int), known, bins=10, resamples=150)
            covers += [covered(curve.accuracy_ci95[bin_], 0.05 + bin_ / 10) for bin_ in range(5, 10)]
    assert np.mean(by_photograph) >= 0.92
    assert np.mean(by_image) < 0.7


@pytest.mark.parametrize(("known", "unknown", "distance"), [(40, 40, 1), (40, 40, 2), (40, 10, 2), (100, 20, 3)])
def test_auroc_and_fpr_of_unknown_images(known, unknown, distance):
    """Scores are normal with variance 1, of which photographs have 0.9 and copies 0.1."""
    normal = NormalDist()
    truth = {"auroc": normal.cdf(distance / math.sqrt(2)), "fpr95": normal.cdf(-distance - normal.inv_cdf(0.05))}
    by_photograph, by_image = ({name: [] for name in truth} for _ in range(2))
    for draw in range(DRAWS):
        rng = np.random.default_rng([4, draw])

        def scores(mean, photographs, rng=rng):
            shared = np.repeat(rng.normal(0, math.sqrt(0.9), photographs), COPIES)
            return mean + shared + rng.normal(0, math.sqrt(0.1), photographs * COPIES)

        sides = scores(distance, known), scores(0, unknown)
        for wrong, names in views(draw, (names_of(known), names_of(unknown))):
            covers = (by_photograph, by_image)[wrong]
            found = detection(*sides, *names, resamples=150)
            for name, of in truth.items():
                covers[name].append(covered(found[f"{name}_ci95"], of))
    assert min(np.mean(covers) for covers in by_photograph.values()) >= 0.90
    assert max(np.mean(covers) for covers in by_image.values()) < 0.7


def test_the_difference_of_two_models():
    photographs, by_photograph, by_image = 60, [], []
    for draw in range(DRAWS):
        rng = np.random.default_rng([5, draw])
        # Copies flip together: both right, only A, only B, neither.
        outcome = np.repeat(rng.choice(4, p=[0.7, 0.05, 0.15, 0.1], size=photographs), COPIES)
        for wrong, known in views(draw, names_of(photographs)):
            covers = (by_photograph, by_image)[wrong]
            result = compare(outcome < 2, outcome % 2 == 0, known, resamples=300)
            covers.append(covered(result["difference_ci95_photographs"], 0.1))
    assert np.mean(by_photograph) >= 0.92
    assert np.mean(by_image) < 0.7


def test_the_vote_of_copies():
    """Wilson's, with photographs as trials: a photograph is right where most of its copies are."""
    covers = []
    for draw in range(DRAWS):
        rng = np.random.default_rng([6, draw])
        right = np.repeat(rng.random(36) < 0.9, COPIES) ^ (rng.random(36 * COPIES) < 0.05)
        probabilities = np.where(right[:, None], [0.9, 0.1], [0.1, 0.9])
        scores = vote_scores(probabilities, np.zeros(len(right), dtype=int), names_of(36))
        covers.append(covered(scores["accuracy_ci95"], 0.9))
    assert np.mean(covers) >= 0.92
