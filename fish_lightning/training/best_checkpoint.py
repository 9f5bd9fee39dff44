"""``best.ckpt``: the weights of the best epoch, for testing and prediction."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from fish_lightning.training.average import WeightAverage
from fish_lightning.training.trainer import callback_of


class BestCheckpoint(ModelCheckpoint):
    """Keeps the epoch with the highest monitored metric; ties are broken by the lowest ``tie_breaker``.

    With ``monitor="step"`` it keeps the last epoch, which is better where validation images show few photographs and
    the learning rate ends at 0: the epoch with the highest accuracy on a few photographs is one that suits these few.

    Where weights are averaged, the checkpoint contains the average, which is what was validated. Ties are common with
    small validation sets; Lightning keeps the earliest epoch.

    Args:
        tie_breaker: name of a logged metric; lower is better.
        **arguments: arguments of :class:`lightning.pytorch.callbacks.ModelCheckpoint`.
    """

    _KEPT = ("best_tie_breaker", "best_epoch", "best_metrics")

    def __init__(self, tie_breaker: str = "val/loss", **arguments: Any) -> None:
        super().__init__(
            save_top_k=1, mode="max", enable_version_counter=False, auto_insert_metric_name=False, **arguments
        )
        self.tie_breaker = tie_breaker
        self.best_tie_breaker: float | None = None
        self.best_epoch: int | None = None
        self.best_metrics: dict[str, float] = {}  # of the best validation

    def check_monitor_top_k(self, trainer: L.Trainer, current: Tensor | None = None) -> bool:
        """Return whether ``current`` is better than the best value, or equal with a lower tie-breaker."""
        value = float(trainer.callback_metrics.get(self.tie_breaker, float("inf")))
        better = super().check_monitor_top_k(trainer, current)
        if not better and current is not None and self.best_model_score is not None:
            tie = bool(torch.eq(current, self.best_model_score.to(current.device)))
            better = tie and self.best_tie_breaker is not None and value < self.best_tie_breaker
        if better:
            self.best_tie_breaker, self.best_epoch = value, trainer.current_epoch + 1
            measured = trainer.callback_metrics.items()
            self.best_metrics = {name: float(score) for name, score in measured if name.startswith("val/")}
        return better

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save if it is due."""
        with _as_validated(trainer, pl_module):
            super().on_validation_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save if it is due."""
        with _as_validated(trainer, pl_module):
            super().on_train_epoch_end(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Return Lightning's state and that of the best epoch."""
        return super().state_dict() | {name: getattr(self, name) for name in self._KEPT}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state, also where the run folder was moved.

        Lightning then drops the best score and keeps the old path.
        """
        assert self.dirpath is not None
        here = {path: str(Path(self.dirpath) / Path(path).name) for path in state_dict["best_k_models"]}
        if not all(Path(path).is_file() for path in here.values()):
            return  # the file is gone: the best epoch is one of those to come
        for name in self._KEPT:
            setattr(self, name, state_dict[name])
        paths = ("best_model_path", "kth_best_model_path", "last_model_path")
        moved = {name: here.get(state_dict[name], "") for name in paths} | {
            "dirpath": self.dirpath,
            "best_k_models": {here[path]: score for path, score in state_dict["best_k_models"].items()},
        }
        super().load_state_dict(state_dict | moved)


def _as_validated(trainer: L.Trainer, pl_module: L.LightningModule) -> AbstractContextManager[None]:
    """Put the validated weights into the model; two averages would overwrite each other."""
    average = callback_of(trainer, WeightAverage)
    return average.in_model(pl_module) if average else nullcontext()


def best_checkpoint(trainer: L.Trainer) -> str | None:
    """Return the path of the best checkpoint; None, which means the weights in memory, where the run keeps none."""
    best = callback_of(trainer, BestCheckpoint)
    return best.best_model_path or None if best else None
