"""``last.ckpt``: everything a run needs to continue, written by one callback and never left half-written."""

from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from fish_lightning import compat
from fish_lightning.errors import UserError, full_disk
from fish_lightning.files import shown, whole_file


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint to a temporary file beside its place, flushes it to disk, and renames it.

    Lightning writes to the system's temporary folder, and copies from there where that is another disk: a process
    killed while copying leaves a corrupt file in place of the previous one.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write one file whole or not at all.

        Args:
            checkpoint: what to save.
            path: the file to create or replace.
            storage_options: not used.

        Raises:
            UserError: there is no room for it; the previous file is unchanged.
        """
        try:
            with whole_file(Path(path)) as temporary, temporary.open("wb") as stream:
                torch.save(checkpoint, stream)
        except (OSError, RuntimeError) as error:
            fault = full_disk(error)
            if fault is None:
                raise
            kept = "; the previous one is intact" if Path(path).is_file() else ""
            raise UserError(
                f"no room for the checkpoint {shown(path)} ({fault.strerror}){kept}\n"
                "make room and resume from it, or write elsewhere: paths.logs=FOLDER"
            ) from None


class LastCheckpoint(Checkpoint):
    """Writes ``last.ckpt``: every so many steps, at the end of each epoch, and when the run is asked to stop.

    Lightning's ``ModelCheckpoint`` does one of these. As a ``Checkpoint`` it is called after other callbacks, and so
    holds what they have noted of the step or the epoch.

    A run that ``trainer.max_time`` ends within an epoch is saved after that step, and not at the early end of the
    epoch, from where Lightning would continue with the next one.

    Args:
        path: the file.
        every_n_steps: optimizer steps of the run between two checkpoints; None: at the ends of epochs only.

    Attributes:
        requested: whether to save after this step, whatever its number (:class:`StopOnSignal` sets it).
    """

    def __init__(self, path: str | Path, every_n_steps: int | None = None) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise UserError(f"callbacks.last.every_n_steps={every_n_steps}: expected 1 or more, or null")
        self.path, self.every_n_steps = Path(path), every_n_steps
        self.requested = False
        self._cut = False  # the epoch ends before its last step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save after each ``every_n_steps``; an epoch's last step is saved with its validation, at the end."""
        due = self.every_n_steps is not None and trainer.global_step % self.every_n_steps == 0
        between = compat.is_between_steps(trainer, batch_idx)
        self._cut = between and compat.is_ending_epoch_early(trainer)
        if between and (due or self._cut or self.requested):
            self._save(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save when the epoch's row is in the history."""
        if not self._cut:
            self._save(trainer)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Let a resumed run begin with the validation that follows this step, where one does."""
        compat.schedule_pending_validation(trainer, checkpoint)

    def _save(self, trainer: L.Trainer) -> None:
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            trainer.save_checkpoint(self.path, weights_only=False)
