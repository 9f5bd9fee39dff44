"""``last.ckpt``: everything a run needs to resume, written by one callback and never left half-written."""

from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from fish_lightning import compat
from fish_lightning.errors import UserError, full_disk
from fish_lightning.files import atomic_write, shown


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint to a temporary file in its folder, flushes it to disk, and renames it.

    Lightning writes to the system's temporary folder. Where that is another disk it copies the file, and a process
    killed while copying leaves a corrupt file in place of the previous one.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write the file atomically.

        Args:
            checkpoint: checkpoint to save.
            path: the file to create or replace.
            storage_options: not used.

        Raises:
            UserError: the disk is full; the previous file is unchanged.
        """
        try:
            with atomic_write(Path(path)) as temporary, temporary.open("wb") as stream:
                torch.save(checkpoint, stream)
        except (OSError, RuntimeError) as error:
            fault = full_disk(error)
            if fault is None:
                raise
            kept = "; the previous one is intact" if Path(path).is_file() else ""
            raise UserError(
                f"not enough disk space for the checkpoint {shown(path)} ({fault.strerror}){kept}\n"
                "free some and resume from it, or write elsewhere: paths.logs=FOLDER"
            ) from None


class LastCheckpoint(Checkpoint):
    """Writes ``last.ckpt`` every ``every_n_steps`` steps, at the end of each epoch, and when the run is told to stop.

    Lightning's ``ModelCheckpoint`` does only one of these. Lightning calls a ``Checkpoint`` after other callbacks, so
    that their state of the step or the epoch is saved.

    A run that ``trainer.max_time`` ends within an epoch is saved after that step, but not at the early end of the
    epoch, from where Lightning would resume with the next epoch.

    Args:
        path: path of the checkpoint file.
        every_n_steps: number of optimizer steps between two checkpoints; None: save at the end of epochs only.
        keep: whether to keep the file when the run is complete.

    Attributes:
        requested: whether to save after this step in any case (set by
            :class:`fish_lightning.resume.signals.StopOnSignal`).
    """

    def __init__(self, path: str | Path, every_n_steps: int | None = None, keep: bool = True) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise UserError(f"callbacks.last.every_n_steps={every_n_steps}: expected 1 or more, or null")
        self.path, self.every_n_steps, self.keep = Path(path), every_n_steps, keep
        self.requested = False
        self._cut = False  # the epoch ends before its last step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if it is due; the last step of an epoch is saved after its validation."""
        due = self.every_n_steps is not None and trainer.global_step % self.every_n_steps == 0
        between = compat.is_between_steps(trainer, batch_idx)
        self._cut = between and compat.is_ending_epoch_early(trainer)
        if between and (due or self._cut or self.requested):
            self._save(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save, after the other callbacks have processed the epoch."""
        if not self._cut:
            self._save(trainer)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Make a resumed run begin with the validation that is due after this step, if one is."""
        compat.schedule_pending_validation(trainer, checkpoint)

    def clean_up(self) -> None:
        """Remove the file unless it is to be kept; call this when the run is complete."""
        if not self.keep:
            self.path.unlink(missing_ok=True)

    def _save(self, trainer: L.Trainer) -> None:
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            trainer.save_checkpoint(self.path, weights_only=False)
