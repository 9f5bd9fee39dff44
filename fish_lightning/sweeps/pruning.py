"""A trial of an Optuna study: it reports each epoch and stops where the study's pruner gives it up."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from fish_lightning import compat
from fish_lightning.sweeps.study import open_storage


class ReportToStudy(Callback):
    """Reports the validation of each epoch; a pruned run ends as an early stopped one does, with its summary.

    Args:
        storage: of the study (see :func:`fish_lightning.sweeps.study.open_storage`).
        study_name: in the storage.
        monitor: what the study optimizes, ``val/…`` or ``test/…``; reported is the validation's.
        pruner: Optuna's, which studies do not keep.
        trial: number of the trial that this run is; None: do nothing.

    Attributes:
        pruned: whether the study gave the run up.
    """

    def __init__(self, storage: str, study_name: str, monitor: str, pruner: Any, trial: int | None = None) -> None:
        self.storage, self.study_name, self.number, self.pruner = storage, study_name, trial, pruner
        self.monitor = "val/" + monitor.partition("/")[2]
        self.pruned = False

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Rank 0 reports and asks, and tells the others: a rank that went on alone would wait for them for ever."""
        if self.number is None or self.monitor not in trainer.callback_metrics:
            return  # no trial, or an epoch without a validation
        value = float(trainer.callback_metrics[self.monitor])
        prune = self._report(trainer.current_epoch + 1, value) if trainer.is_global_zero else False
        self.pruned = trainer.strategy.broadcast(prune)
        if self.pruned:
            trainer.print(f"pruned after epoch {trainer.current_epoch + 1}")
            trainer.should_stop = True

    def _report(self, epoch: int, value: float) -> bool:
        import optuna

        study = optuna.load_study(study_name=self.study_name, storage=open_storage(self.storage), pruner=self.pruner)
        assert self.number is not None
        trial = compat.running_trial(study, self.number)
        if (
            epoch not in study.get_trials(deepcopy=False)[self.number].intermediate_values
        ):  # an epoch repeated after a kill has been reported
            trial.report(value, epoch)
        return bool(trial.should_prune())  # numpy's, from a median
