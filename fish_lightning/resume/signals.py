"""Ctrl-C, SIGTERM and Slurm's warning signal: finish the step, save a checkpoint, print how to resume."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn

from fish_lightning import compat
from fish_lightning.distributed import cluster
from fish_lightning.distributed.ranks import starts_processes
from fish_lightning.errors import UserError
from fish_lightning.files import override, run_of, shown
from fish_lightning.resume.checkpoints import LastCheckpoint


class Stopped(UserError):
    """The run was stopped by a signal."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


def take_signals(handler: Callable[[int, FrameType | None], Any], *others: int | None) -> bool:
    """Call ``handler`` on Ctrl-C, SIGTERM and the other signals, instead of Lightning's handlers.

    Submitit ignores SIGTERM, which a preempted job also receives, and requeues on a signal of its own.

    Returns:
        Whether that is possible: Python allows it in the main thread only.
    """
    if threading.current_thread() is not threading.main_thread():
        return False
    term = None if "SUBMITIT_EXECUTOR" in os.environ else signal.SIGTERM
    for number in (signal.SIGINT, term, *others):
        if number is not None:
            signal.signal(number, handler)
    return True


def end_other_rank(trainer: L.Trainer, number: int) -> None:
    """End a process other than rank 0, which prints the message, after a signal.

    One that Lightning has started would kill the run with another exit code than 0.
    """
    if not trainer.is_global_zero:
        sys.exit(0 if starts_processes(trainer) else 128 + number)


class StopOnSignal(Callback):
    """Stops the run when the current step is done and :class:`LastCheckpoint` has saved it.

    The handler only sets a flag: a checkpoint saved inside a signal handler, as by Lightning's handler for Slurm, can
    be corrupt (Lightning issue 21406). A second signal stops immediately, without saving; so does the first one during
    the validation before training and during the test, when there is nothing to save.

    On Slurm the signal that announces the time limit (``sbatch --signal=USR1@90``) also requeues the job;
    ``SLURMEnvironment(auto_requeue=False)`` in ``trainer.plugins`` disables that.

    Args:
        path: the checkpoint to resume from.

    Attributes:
        received: the signal that this process received.
        agreed: the signal that all processes of the run stop for, after the same step.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.received: int | None = None
        self.agreed: int | None = None
        self._requeue_signal: int | None = None
        self._group: Any = None  # of processes, where there are several

    # Lightning installs its own handlers before these hooks, and restores the previous ones at the end.

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take over the signals."""
        self._take_signals(trainer)
        if trainer.world_size > 1:
            self._group = torch.distributed.new_group(backend="gloo")  # NCCL would wait for the devices
            compat.disable_sigterm_broadcast(trainer)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take over the signals."""
        self._take_signals(trainer)

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take over the signals."""
        self._take_signals(trainer)

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take over the signals."""
        self._take_signals(trainer)

    def _take_signals(self, trainer: L.Trainer) -> None:
        """Replace Lightning's handlers: that of SIGTERM exits with code 0, that of Slurm saves immediately."""
        requeue_signal = compat.requeue_signal(trainer)
        if take_signals(partial(self._note, trainer), requeue_signal):
            self._requeue_signal = requeue_signal

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Request a checkpoint of the step during which a signal was received."""
        self._agree(trainer)
        if self.agreed is not None:
            for callback in trainer.checkpoint_callbacks:
                if isinstance(callback, LastCheckpoint):  # called after this one
                    callback.requested = True

    def on_train_epoch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Agree on a signal received in the last step or its validation; the epoch is saved in any case."""
        self._agree(trainer)

    # The run stops in the next hook: Lightning logs the metrics of the step or the epoch after saving it.

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Stop before the next step; an accumulation over several batches is completed first."""
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._stop(trainer)

    def on_train_epoch_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Stop before the next epoch."""
        self._stop(trainer)

    def on_train_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Stop before the test."""
        self._agree(trainer)
        self._stop(trainer)

    def _note(self, trainer: L.Trainer, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if trainer.state.fn != TrainerFn.FITTING:
            requeued = self._requeue(trainer) if number == self._requeue_signal else None
            stage = "before training" if trainer.state.fn == TrainerFn.VALIDATING else "during the test, after training"
            raise Stopped(f"stopped by {name} {stage}\n{requeued or self._advice()}", number)
        if self.received is not None:
            raise Stopped(f"stopped by {name} immediately, in the middle of a step\n{self._advice()}", number)
        self.received = number
        if trainer.is_global_zero:
            print("\nfinishing and saving this step (press Ctrl-C again to stop immediately)", flush=True)

    def _agree(self, trainer: L.Trainer) -> None:
        """Make all processes stop after the same step, whichever of them received the signal, and when."""
        self.agreed = self.received
        if trainer.world_size > 1:
            number = torch.tensor(self.received or 0)
            torch.distributed.all_reduce(number, op=torch.distributed.ReduceOp.MAX, group=self._group)
            self.agreed = int(number) or None

    def _stop(self, trainer: L.Trainer) -> None:
        if self.agreed is None:
            return
        requeued = self._requeue(trainer) if self.agreed == self._requeue_signal else None
        end_other_rank(trainer, self.agreed)
        kept = f", saved in {shown(self.path)}" if self.path.is_file() else ""
        raise Stopped(
            f"stopped by {signal.Signals(self.agreed).name} at step {trainer.global_step} of "
            f"{trainer.estimated_stepping_batches}{kept}\n" + (requeued or self._advice()),
            self.agreed,
        )

    def _advice(self) -> str:
        if self.path.is_file():
            start = "the same command and:" if cluster.is_started_as_tasks() else "python -m fish_lightning.train"
            return f"resume with {start} {override('ckpt', run_of(self.path))}"
        return "nothing was saved; start the run again"

    def _requeue(self, trainer: L.Trainer) -> str | None:
        """Requeue the Slurm job, as Lightning does; return the message, or None where it failed."""
        if not trainer.is_global_zero:
            return ""
        try:
            return f"Slurm job {cluster.requeue()} is requeued and will resume automatically"
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"note: scontrol requeue failed: {error}", flush=True)
            return None
