"""Learning-rate schedules over the total number of steps."""

import math
from functools import partial
from itertools import pairwise

import pytest
import torch

from fish_lightning.models.schedules import constant, cosine, onecycle


def rates(make, steps, lr=0.01):
    """Return the learning rate of each step and the one after them."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    schedule = make(optimizer, steps)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found, optimizer.param_groups[0]["lr"]


def test_onecycle_starts_low_peaks_at_max_lr_and_ends_near_zero():
    found, _ = rates(partial(onecycle, max_lr=0.01), 100)
    assert found[0] == pytest.approx(0.01 / 25)
    assert found[29] == max(found) == pytest.approx(0.01)  # 0.3 of 100 steps, counted from 0
    assert found[-1] == pytest.approx(0.01 / 25 / 1e4)
    assert all(a < b for a, b in pairwise(found[:30]))
    assert all(a > b for a, b in pairwise(found[29:]))


def test_onecycle_passes_its_settings_on():
    found, _ = rates(partial(onecycle, max_lr=1.0, pct_start=0.5, div_factor=2, anneal_strategy="linear"), 11)
    assert found[:5] == pytest.approx([0.5, 0.5 + 0.5 / 4.5, 0.5 + 1 / 4.5, 0.5 + 1.5 / 4.5, 0.5 + 2 / 4.5])


def test_cosine_anneals_from_the_learning_rate_of_the_optimizer_to_eta_min():
    found, after = rates(partial(cosine, eta_min=0.001), 50)
    for step, rate in enumerate(found):
        assert rate == pytest.approx(0.001 + 0.009 * (1 + math.cos(math.pi * step / 50)) / 2, rel=1e-6)
    assert after == pytest.approx(0.001)


def test_constant_does_not_change():
    found, after = rates(constant, 20, lr=0.3)
    assert set(found) == {0.3} and after == 0.3
