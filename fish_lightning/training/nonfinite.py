"""A NaN or infinite training loss stops the run, or its batch is skipped, before it reaches the weights."""

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.optim import Optimizer

from fish_lightning.distributed.ranks import gathered
from fish_lightning.errors import UserError
from fish_lightning.files import shown
from fish_lightning.names import listed

SHOWN = 5  # files of a batch named in the error


class NonFiniteLoss(Callback):
    """Checks each training loss before the optimizer step, and the weights before each checkpoint.

    The loss is copied to the host while the device computes the gradients, so that the check does not stall it.
    Checking the gradients would. Where only they are NaN, the step makes the weights NaN: the next loss shows it, and
    they are never saved.

    Args:
        action: what to do: ``"stop"`` ends the run and names the batch's files; ``"skip"`` skips and counts the batch.
        path: the checkpoint to resume a stopped run from.

    Attributes:
        skipped: number of skipped batches, in all parts of an interrupted run.
    """

    def __init__(self, action: str, path: str | Path) -> None:
        if action not in ("stop", "skip"):
            raise UserError(f"on_nan={action}: expected stop or skip")
        self.action, self.path = action, Path(path)
        self.skipped = 0
        self._indices: list[Tensor] = []
        self._bad: list[Tensor] = []  # for each batch of the step, above 0 where the loss is not finite
        self._copied: Any = None
        self._buffers: list[Tensor] = []

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Copy the buffers, since the forward pass updates the running statistics of batch normalization."""
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._indices.clear()
            self._bad.clear()
            if self.action == "skip":
                self._buffers = [buffer.clone() for buffer in pl_module.buffers()]
        self._indices.append(batch["index"])

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        """Start copying to the host whether the loss is finite, on all processes of the run."""
        bad = (~loss.detach().isfinite()).float()
        if trainer.world_size > 1:
            torch.distributed.all_reduce(bad)
        if bad.is_cuda:
            bad = bad.to("cpu", non_blocking=True)
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()
        self._bad.append(bad)

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        """Stop, or drop the gradients: an optimizer skips parameters without one, and their momentum.

        Raises:
            UserError: the loss of a batch is NaN or infinite and is not to be skipped, or a weight is.
        """
        if self._copied is not None:
            self._copied.synchronize()
        if not any(map(bool, self._bad)):
            return
        self._require_finite(pl_module.parameters())  # buffers may be NaN from this batch alone
        if self.action == "stop":
            indices = sorted(itertools.chain(*gathered(torch.cat(self._indices).tolist())))
            paths = trainer.datamodule.catalog.paths[indices].tolist()  # type: ignore[attr-defined]
            raise UserError(
                f"the training loss of step {trainer.global_step + 1} is NaN or infinite; the weights are unchanged\n"
                f"batch: {listed(paths, SHOWN)}\n{self._advice()}; on_nan=skip skips such batches"
            )
        optimizer.zero_grad(set_to_none=True)
        for buffer, before in zip(pl_module.buffers(), self._buffers, strict=True):
            buffer.copy_(before)
        self.skipped += 1

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check the weights: the best checkpoint follows the validation."""
        if trainer.state.fn == "fit":
            self._require_finite([*pl_module.parameters(), *pl_module.buffers()])

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """End a run that skips every batch.

        Raises:
            UserError: no training loss of the epoch was finite, and the validation loss is not either.
        """
        train, val = (trainer.callback_metrics.get(f"{stage}/loss") for stage in ("train", "val"))
        if train is not None and not train.isfinite() and (val is None or not val.isfinite()):
            raise UserError(
                f"the model diverged: no training loss of epoch {trainer.current_epoch + 1} is finite\n{self._advice()}"
            )

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Check the weights before they are written."""
        self._require_finite([*pl_module.parameters(), *pl_module.buffers()])

    def state_dict(self) -> dict[str, Any]:
        """Return the number of skipped batches."""
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.skipped = state_dict["skipped"]

    def _require_finite(self, weights: Iterable[Tensor]) -> None:
        """Raise a UserError if a weight is NaN or infinite."""
        if not bool(torch.stack([part.isfinite().all() for part in weights]).all()):
            raise UserError(
                "the weights are NaN or infinite after a step whose loss was finite; they were not saved\n"
                + self._advice()
            )

    def _advice(self) -> str:
        kept = f"last good checkpoint: {shown(self.path)}" if self.path.is_file() else "no checkpoint was saved yet"
        return f"{kept}\na lower optimizer.lr often helps"
