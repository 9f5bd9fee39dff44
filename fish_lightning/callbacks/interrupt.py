"""Ctrl-C, SIGTERM and SLURM's warning finish the step, save a resumable checkpoint and say how to go on."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn

from fish_lightning.callbacks.checkpoints import is_between_steps
from fish_lightning.errors import UserError
from fish_lightning.files import override, shown
from fish_lightning.processes import starts_processes


class Stopped(UserError):
    """The run was stopped by a signal, in training after it saved its state."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


class SaveOnInterrupt(Callback):
    """Saves ``last.ckpt`` when the step that a signal came in is done.

    The handler only sets a flag: a checkpoint saved inside a signal handler can be corrupt (Lightning issue 21406, and
    what Lightning's own handler for SLURM does). A second signal stops at once, without saving; so does the first one
    in the validation before training and in the test, where there is nothing to save.

    On SLURM the signal that warns of the end (``sbatch --signal=USR1@90``) also puts the job back into the queue;
    ``SLURMEnvironment(auto_requeue=False)`` among ``trainer.plugins`` switches that off.

    Args:
        path: the checkpoint to write.

    Attributes:
        received: the signal that this process has had.
        agreed: the one that it stops for, as all processes of the run do after the same step.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.received: int | None = None
        self.agreed: int | None = None
        self._requeue_signal: int | None = None
        self._trainer: L.Trainer | None = None
        self._group: Any = None  # of processes, where there are several

    # Lightning sets its own handlers before these hooks, and puts back what was there before them when it has ended.

    def on_train_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Take over the signals."""
        self._take_signals(trainer)
        if trainer.world_size > 1:
            # On the hosts: to ask the devices would be to wait for them, at each step. Lightning asks them too, whether
            # one of the processes has had SIGTERM, which is noted here.
            self._group = torch.distributed.new_group(backend="gloo")
            trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]

    def on_validation_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Take over the signals."""
        self._take_signals(trainer)

    def on_test_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Take over the signals."""
        self._take_signals(trainer)

    def _take_signals(self, trainer: L.Trainer) -> None:
        """From Lightning, whose handler of SIGTERM ends a run with exit code 0 and whose handler for SLURM saves.

        Outside the main thread Python does not allow it.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        self._trainer = trainer
        environment: Any = trainer._accelerator_connector.cluster_environment
        if isinstance(environment, SLURMEnvironment) and environment.auto_requeue:
            self._requeue_signal = environment.requeue_signal
        # Submitit passes over SIGTERM, which a preempted job gets too, and requeues by a signal of its own.
        term = None if "SUBMITIT_EXECUTOR" in os.environ else signal.SIGTERM
        for number in (signal.SIGINT, term, self._requeue_signal):
            if number is not None:
                signal.signal(number, self._note)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save after the step that a signal came in; after an epoch's last step its validation comes first."""
        self._agree(trainer)
        if self.agreed is not None and is_between_steps(trainer, batch_idx):
            trainer.save_checkpoint(self.path, weights_only=False)

    def on_train_epoch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Save when the epoch in whose last step or validation a signal came is whole."""
        self._agree(trainer)
        if self.agreed is not None:
            trainer.save_checkpoint(self.path, weights_only=False)

    # Stopping waits for the next hook: between saving and that, Lightning logs what the step or the epoch measured.

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Stop before the next step; gradients that gather over several batches are awaited."""
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._stop(trainer)

    def on_train_epoch_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Stop before the next epoch."""
        self._stop(trainer)

    def on_train_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Stop before the test."""
        self._agree(trainer)
        self._stop(trainer)

    def _note(self, number: int, frame: FrameType | None) -> None:
        trainer = self._trainer
        assert trainer is not None
        name = signal.Signals(number).name
        if trainer.state.fn != TrainerFn.FITTING:
            requeued = self._requeue(trainer) if number == self._requeue_signal else None
            stage = "before training" if trainer.state.fn == TrainerFn.VALIDATING else "in the test, after training"
            raise Stopped(f"stopped by {name} {stage}\n{requeued or self._advice()}", number)
        if self.received is not None:
            raise Stopped(f"stopped by {name} at once, within a step\n{self._advice()}", number)
        self.received = number
        if trainer.is_global_zero:
            print("\nstopping: the step is finished and saved first (once more to stop at once)", flush=True)

    def _agree(self, trainer: L.Trainer) -> None:
        """Make the processes of a run stop after the same step, whichever of them the signal came to, and when."""
        self.agreed = self.received
        if trainer.world_size > 1:
            number = torch.tensor(self.received or 0)
            torch.distributed.all_reduce(number, op=torch.distributed.ReduceOp.MAX, group=self._group)
            self.agreed = int(number) or None

    def _stop(self, trainer: L.Trainer) -> None:
        if self.agreed is None:
            return
        requeued = self._requeue(trainer) if self.agreed == self._requeue_signal else None
        if not trainer.is_global_zero:
            # The first process says it; where Lightning has started this one, it would be ended for another exit code.
            sys.exit(0 if starts_processes(trainer) else 128 + self.agreed)
        kept = f"; everything up to it is in {shown(self.path)}" if self.path.is_file() else ""
        raise Stopped(
            f"stopped by {signal.Signals(self.agreed).name} at step {trainer.global_step} of "
            f"{trainer.estimated_stepping_batches}{kept}\n" + (requeued or self._advice()),
            self.agreed,
        )

    def _advice(self) -> str:
        if self.path.is_file():
            return f"go on with the same command and:  {override('ckpt', self.path)}"
        return "nothing was saved: start it again"

    def _requeue(self, trainer: L.Trainer) -> str | None:
        """Put the SLURM job back into the queue, as Lightning does it; None where that failed, else what to say."""
        array = os.environ.get("SLURM_ARRAY_JOB_ID")
        job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]
        if trainer.is_global_zero:
            try:
                subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, text=True)  # noqa: S603, S607
            except (OSError, subprocess.CalledProcessError) as error:
                print(f"note: scontrol requeue {job} failed: {error}", flush=True)
                return None
        return f"SLURM job {job} is in the queue again and goes on by itself"
