"""Predictions as arrays."""

import numpy as np

from fish_lightning.evaluation.outputs import Predictions


def test_most_probable_class_and_whether_it_is_correct():
    logits = np.log(np.array([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]], np.float32)) + 3
    predictions = Predictions(np.arange(3), np.array([1, 1, 1]), logits, np.zeros((3, 2), np.float16))
    np.testing.assert_allclose(predictions.probabilities, [[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]], rtol=1e-6)
    assert predictions.preds.tolist() == [1, 0, 1] and predictions.correct.tolist() == [True, False, True]
