"""Ctrl-C and SIGTERM finish the step, save a resumable checkpoint and say how to go on."""

import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from fish_lightning.errors import UserError
from fish_lightning.files import shown


class Stopped(UserError):
    """The run was stopped by a signal after it saved its state."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


class SaveOnInterrupt(Callback):
    """Saves ``last.ckpt`` when the step that a signal came in is done.

    The handler only sets a flag: a checkpoint saved inside a signal handler can be corrupt (Lightning issue 21406). A
    second Ctrl-C stops at once, without saving.

    Args:
        path: the checkpoint to write.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.received: int | None = None
        self._former: dict[int, Any] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take over the two signals from Lightning, whose own handler of SIGTERM ends a run with exit code 0.

        Outside the main thread Python does not allow it.
        """
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._former[number] = signal.signal(number, self._note)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Give the signals back."""
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former.clear()

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Save after the step that a signal came in; after an epoch's last step its validation comes first."""
        if self.received is not None and not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            trainer.save_checkpoint(self.path)

    def on_train_epoch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Save when the epoch in whose last step or validation a signal came is whole."""
        if self.received is not None:
            trainer.save_checkpoint(self.path)

    # Stopping waits for the next hook: between saving and that, Lightning logs what the step or the epoch measured.

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Stop before the next step."""
        self._stop(trainer)

    def on_train_epoch_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Stop before the next epoch."""
        self._stop(trainer)

    def on_train_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Stop before the test."""
        self._stop(trainer)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = number
        print("\nstopping: the step is finished and saved first (once more to stop at once)", flush=True)

    def _stop(self, trainer: L.Trainer) -> None:
        if self.received is None:
            return
        raise Stopped(
            f"stopped by {signal.Signals(self.received).name} at step {trainer.global_step} of "
            f"{trainer.estimated_stepping_batches}; everything up to it is in {shown(self.path)}\n"
            f"go on with the same command and:  ckpt={shown(self.path)}",
            self.received,
        )
