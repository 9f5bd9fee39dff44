"""Learning-rate schedules over a run's total number of optimizer steps, which only the run knows."""

from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler, OneCycleLR


def onecycle(optimizer: Optimizer, total_steps: int, **arguments: Any) -> LRScheduler:
    """One cycle up to ``max_lr`` and down (Smith and Topin 2018, arXiv:1708.07120), stepped each batch."""
    return OneCycleLR(optimizer, total_steps=total_steps, **arguments)


def cosine(optimizer: Optimizer, total_steps: int, **arguments: Any) -> LRScheduler:
    """Half a cosine from the optimizer's rate to ``eta_min`` (Loshchilov and Hutter 2017, arXiv:1608.03983)."""
    return CosineAnnealingLR(optimizer, T_max=total_steps, **arguments)


def constant(optimizer: Optimizer, total_steps: int) -> LRScheduler:
    """The optimizer's own rate throughout."""
    del total_steps
    return LambdaLR(optimizer, lambda _: 1.0)
