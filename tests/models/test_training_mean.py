"""The means of loss and accuracy over a training epoch."""

import math

import pytest
import torch

from fish_lightning.models.classifier import TrainingMean


def test_mean_is_weighted_by_images():
    mean = TrainingMean()
    mean.update(torch.tensor(1.0), 3)
    mean.update(torch.tensor(2.0), 1)
    assert float(mean.compute()) == pytest.approx(1.25)
    mean.reset()
    mean.update(torch.tensor(0.5), 2)
    assert float(mean.compute()) == 0.5


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_batches_with_a_nan_or_infinite_loss_are_excluded(value):
    mean = TrainingMean()
    for loss in (0.5, value, 1.5):
        mean.update(torch.tensor(loss), 4)
    assert float(mean.compute()) == 1.0 and mean.sums() == (8.0, 8.0)


def test_restored_mean_continues():
    first, second = TrainingMean(), TrainingMean()
    first.update(torch.tensor(1.0), 3)
    second.restore(first.sums())
    second.update(torch.tensor(2.0), 1)
    assert float(second.compute()) == pytest.approx(1.25)
