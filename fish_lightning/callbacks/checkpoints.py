"""Checkpoints of a run: ``best.ckpt`` (weights, to test and predict with) and ``last.ckpt`` (everything, to resume)."""

from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor

from fish_lightning.errors import UserError, full_disk
from fish_lightning.files import shown, whole_file


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside its place, waits for the disk, and renames it: the former one stays until then.

    Lightning's own writes it to the system's temporary folder, and copies from there where that is another disk: a
    process killed while it copies leaves a broken file in place of the former one.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write one file whole.

        Args:
            checkpoint: what to save.
            path: the file to make or replace.
            storage_options: not used.

        Raises:
            UserError: there is no room for it; the former file is as it was.
        """
        try:
            with whole_file(Path(path)) as temporary, temporary.open("wb") as stream:
                torch.save(checkpoint, stream)
        except (OSError, RuntimeError) as error:
            fault = full_disk(error)
            if fault is None:
                raise
            kept = "; the one before it is whole" if Path(path).is_file() else ""
            raise UserError(
                f"no room for the checkpoint {shown(path)} ({fault.strerror}){kept}\n"
                "make room and go on with it, or write elsewhere: paths.logs=FOLDER"
            ) from None


class LastCheckpoint(Checkpoint):
    """Keeps ``last.ckpt``: everything, every some steps and at the end of each epoch.

    Lightning's ``ModelCheckpoint`` takes one of the two. Being a ``Checkpoint``, it is called after other callbacks,
    and holds what they have noted of the step or the epoch.

    A run that ``trainer.max_time`` ends within an epoch is saved after that step, and not at the early end of the
    epoch, from where Lightning would go on with the next one.

    Args:
        path: the file.
        every_n_steps: optimizer steps of the run from one to the next; None: at the ends of epochs alone.
    """

    def __init__(self, path: str | Path, every_n_steps: int | None = None) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise UserError(f"callbacks.last.every_n_steps={every_n_steps}: it is 1 or more, or null")
        self.path, self.every_n_steps = Path(path), every_n_steps
        self._cut = False  # the epoch ends before its last step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save after each ``every_n_steps``; an epoch's last step is saved with its validation, at the end."""
        due = self.every_n_steps is not None and trainer.global_step % self.every_n_steps == 0
        between = is_between_steps(trainer, batch_idx)
        self._cut = between and trainer.should_stop and trainer.fit_loop._can_stop_early
        if between and (due or self._cut):
            self._save(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save when the epoch's rows are noted."""
        if not self._cut:
            self._save(trainer)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Let a run that goes on begin with the validation that follows this step, where one does.

        Lightning goes on with the next step (``_TrainingEpochLoop.advance``), unless it finds a validation begun.
        """
        loop: Any = trainer.fit_loop.epoch_loop
        now = loop.batch_progress.current
        if now.completed == now.processed or trainer._val_check_time_interval is not None:  # type: ignore[attr-defined]
            return
        stops, trainer.should_stop = trainer.should_stop, False  # one that comes with the stop does not come again
        follows = loop._should_check_val_fx(trainer.fit_loop._data_fetcher)
        trainer.should_stop = stops
        if follows:
            state = checkpoint["loops"]["fit_loop"]
            begun, none = {"ready": 1, "started": 1, "processed": 0, "completed": 0}, dict.fromkeys(vars(now), 0)
            state["epoch_loop.val_loop.batch_progress"] |= {"total": begun, "current": none}
            state["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1  # Lightning adds one after it

    def _save(self, trainer: L.Trainer) -> None:
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            trainer.save_checkpoint(self.path, weights_only=False)


def is_between_steps(trainer: L.Trainer, batch_idx: int) -> bool:
    """Whether an optimizer step, but not the epoch, ends with that batch: no checkpoint holds gradients that gather.

    The step that reaches ``trainer.max_steps`` ends its epoch.
    """
    last = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch or trainer.global_step == trainer.max_steps
    return not last and (batch_idx + 1) % trainer.accumulate_grad_batches == 0


class BestCheckpoint(ModelCheckpoint):
    """Keeps the epoch with the highest monitored score; of equal ones that with the lower ``tie_breaker``.

    Small validation sets tie often. Lightning alone keeps the earliest of equals.

    Args:
        tie_breaker: name of a logged metric, lower is better.
        **arguments: of :class:`lightning.pytorch.callbacks.ModelCheckpoint`.
    """

    _KEPT = ("best_tie_breaker", "best_epoch", "best_metrics")

    def __init__(self, tie_breaker: str = "val/loss", **arguments: Any) -> None:
        super().__init__(
            save_top_k=1, mode="max", enable_version_counter=False, auto_insert_metric_name=False, **arguments
        )
        self.tie_breaker = tie_breaker
        self.best_tie_breaker: float | None = None
        self.best_epoch: int | None = None
        self.best_metrics: dict[str, float] = {}  # all that the best validation measured

    def check_monitor_top_k(self, trainer: L.Trainer, current: Tensor | None = None) -> bool:
        """Whether ``current`` is better than the best so far, or as good with a lower tie-breaker."""
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

    def state_dict(self) -> dict[str, Any]:
        """Lightning's state and what was best."""
        return super().state_dict() | {name: getattr(self, name) for name in self._KEPT}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave, wherever the run's folder is now.

        Lightning forgets the best score where the folder was moved, and keeps the path of the file that was left.
        """
        assert self.dirpath is not None
        here = {path: str(Path(self.dirpath) / Path(path).name) for path in state_dict["best_k_models"]}
        if not all(Path(path).is_file() for path in here.values()):
            return  # nothing to go back to: the best is one of the epochs to come
        for name in self._KEPT:
            setattr(self, name, state_dict[name])
        moved = {
            "dirpath": self.dirpath,
            "best_k_models": {here[path]: score for path, score in state_dict["best_k_models"].items()},
        }
        for name in ("best_model_path", "kth_best_model_path", "last_model_path"):
            moved[name] = here.get(state_dict[name], "")
        super().load_state_dict(state_dict | moved)
