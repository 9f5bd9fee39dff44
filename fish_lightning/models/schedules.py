"""Learning-rate schedules over the total number of optimizer steps of a run."""

from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler, OneCycleLR


def onecycle(optimizer: Optimizer, total_steps: int, max_lr: float, **arguments: Any) -> LRScheduler:
    """Return a one-cycle schedule up to ``max_lr`` and down (Smith and Topin 2018, arXiv:1708.07120).

    A parameter group with ``lr_scale`` has that share of ``max_lr``.
    """
    rates = [max_lr * group.get("lr_scale", 1.0) for group in optimizer.param_groups]
    return OneCycleLR(optimizer, rates, total_steps=total_steps, **arguments)


def cosine(optimizer: Optimizer, total_steps: int, **arguments: Any) -> LRScheduler:
    """Return half a cosine from the optimizer's rate to ``eta_min`` (Loshchilov and Hutter 2017, arXiv:1608.03983)."""
    return CosineAnnealingLR(optimizer, T_max=total_steps, **arguments)


def constant(optimizer: Optimizer, total_steps: int) -> LRScheduler:
    """Return a constant schedule."""
    return LambdaLR(optimizer, lambda _: 1.0)
