"""A trial of an Optuna study: report each epoch, and stop when the study's pruner says so."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from fish_lightning import compat
from fish_lightning.sweeps.study import open_storage


class ReportToStudy(Callback):
    """Reports the validation metric of each epoch; a pruned run ends as with early stopping, with its summary.

    Args:
        storage: storage of the study (see :func:`fish_lightning.sweeps.study.open_storage`).
        study_name: name of the study in the storage.
        monitor: metric that the study optimizes; for ``test/…``, the validation metric is reported.
        pruner: Optuna's pruner, which a storage does not contain.
        trial: number of the trial; None: the run is not part of a study, and nothing is reported.

    Attributes:
        pruned: whether the run was pruned.
    """

    def __init__(self, storage: str, study_name: str, monitor: str, pruner: Any, trial: int | None = None) -> None:
        self.storage, self.study_name, self.number, self.pruner = storage, study_name, trial, pruner
        self.monitor = "val/" + monitor.partition("/")[2]
        self.pruned = False

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Report on rank 0, and stop on all ranks if the trial is pruned."""
        if self.number is None or self.monitor not in trainer.callback_metrics:
            return  # not a trial, or an epoch without validation
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
        # An epoch that is repeated after a kill has been reported.
        if epoch not in study.get_trials(deepcopy=False)[self.number].intermediate_values:
            trial.report(value, epoch)
        return bool(trial.should_prune())  # a median gives numpy's bool
