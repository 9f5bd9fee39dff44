"""The training loss of an epoch."""

import math

import pytest
import torch

from fish_lightning.models.metrics import TrainingLoss


def test_mean_is_weighted_by_images():
    loss = TrainingLoss()
    loss.update(torch.tensor(1.0), 3)
    loss.update(torch.tensor(2.0), 1)
    assert float(loss.compute()) == pytest.approx(1.25)
    loss.reset()
    loss.update(torch.tensor(0.5), 2)
    assert float(loss.compute()) == 0.5


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_batches_with_a_nan_or_infinite_loss_are_excluded(value):
    loss = TrainingLoss()
    for batch_loss in (0.5, value, 1.5):
        loss.update(torch.tensor(batch_loss), 4)
    assert float(loss.compute()) == 1.0 and float(loss.images) == 8
