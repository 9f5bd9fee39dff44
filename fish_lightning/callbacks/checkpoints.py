"""Checkpoints of a run: ``best.ckpt`` (weights, to test and predict with) and ``last.ckpt`` (everything, to resume)."""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor


class BestCheckpoint(ModelCheckpoint):
    """Keeps the epoch with the highest monitored score; of equal ones that with the lower ``tie_breaker``.

    Small validation sets tie often. Lightning alone keeps the earliest of equals.

    Args:
        tie_breaker: name of a logged metric, lower is better.
        **arguments: of :class:`lightning.pytorch.callbacks.ModelCheckpoint`.
    """

    def __init__(self, tie_breaker: str = "val/loss", **arguments: Any) -> None:
        super().__init__(
            save_top_k=1, mode="max", enable_version_counter=False, auto_insert_metric_name=False, **arguments
        )
        self.tie_breaker = tie_breaker
        self.best_tie_breaker: float | None = None
        self.best_epoch: int | None = None

    def check_monitor_top_k(self, trainer: L.Trainer, current: Tensor | None = None) -> bool:
        """Whether ``current`` is better than the best so far, or as good with a lower tie-breaker."""
        value = float(trainer.callback_metrics.get(self.tie_breaker, float("inf")))
        better = super().check_monitor_top_k(trainer, current)
        if not better and current is not None and self.best_model_score is not None:
            tie = bool(torch.eq(current, self.best_model_score.to(current.device)))
            better = tie and self.best_tie_breaker is not None and value < self.best_tie_breaker
        if better:
            self.best_tie_breaker, self.best_epoch = value, trainer.current_epoch + 1
        return better

    def state_dict(self) -> dict[str, Any]:
        """Lightning's state and what was best."""
        return super().state_dict() | {"best_tie_breaker": self.best_tie_breaker, "best_epoch": self.best_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        self.best_tie_breaker, self.best_epoch = state_dict["best_tie_breaker"], state_dict["best_epoch"]
        super().load_state_dict(state_dict)
