"""A training loss that is no number stops the run, or the batch is passed over, before it reaches the weights."""

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

SHOWN = 5  # files named of a batch


class NonFiniteLoss(Callback):
    """Looks at each training loss before the optimizer does; at the weights before each checkpoint.

    The loss is copied to the host while the device computes the gradients: looking at it does not make it wait.
    Gradients are not looked at, for that would: where they alone are no numbers, so are the weights after the step,
    which the next loss shows; no checkpoint of them is written.

    Args:
        action: ``"stop"`` ends the run and names the batch's files; ``"skip"`` passes the batch over and counts it.
        path: the checkpoint that a stopped run can go on with.

    Attributes:
        skipped: batches passed over, of all parts of an interrupted run.
    """

    def __init__(self, action: str, path: str | Path) -> None:
        if action not in ("stop", "skip"):
            raise UserError(f"on_nan={action}: it is stop or skip")
        self.action, self.path = action, Path(path)
        self.skipped = 0
        self._indices: list[Tensor] = []
        self._bad: list[Tensor] = []  # of each batch that the next step takes gradients from, 0 or more
        self._copied: Any = None
        self._buffers: list[Tensor] = []

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keep what a batch changes before the optimizer: the running statistics of batch normalization."""
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._indices.clear()
            self._bad.clear()
            if self.action == "skip":
                self._buffers = [buffer.clone() for buffer in pl_module.buffers()]
        self._indices.append(batch["index"])

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        """Send the loss on its way to the host; with several processes, whether it is finite on all of them."""
        bad = (~loss.detach().isfinite()).float()
        if trainer.world_size > 1:
            torch.distributed.all_reduce(bad)
        if bad.is_cuda:
            bad = bad.to("cpu", non_blocking=True)
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()
        self._bad.append(bad)

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        """Stop, or take the gradients away: an optimizer leaves parameters without one as they are, momentum and all.

        Raises:
            UserError: the loss of a batch is no number, or the weights are none, which no batch mends.
        """
        if self._copied is not None:
            self._copied.synchronize()
        if not any(map(bool, self._bad)):
            return
        self._require_finite(pl_module.parameters())  # the batch itself may have ruined the buffers
        if self.action == "stop":
            parts = gathered([index for indices in self._indices for index in indices.tolist()])
            indices = sorted(index for part in parts for index in part)
            raise UserError(
                f"the loss at step {trainer.global_step + 1} is not a number; it has not reached the weights\n"
                f"its batch: {_names(trainer, indices)}\n{self._advice()}; on_nan=skip passes such batches over"
            )
        optimizer.zero_grad(set_to_none=True)
        for buffer, before in zip(pl_module.buffers(), self._buffers, strict=True):
            buffer.copy_(before)
        self.skipped += 1

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The validation is followed by the best checkpoint."""
        if trainer.state.fn == "fit":
            self._require_finite([*pl_module.parameters(), *pl_module.buffers()])

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Lightning calls this before it writes."""
        self._require_finite([*pl_module.parameters(), *pl_module.buffers()])

    def state_dict(self) -> dict[str, Any]:
        """The count."""
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        self.skipped = state_dict["skipped"]

    def _require_finite(self, weights: Iterable[Tensor]) -> None:
        """Refuse ruined weights."""
        tensors = [part.detach() for part in weights if part.is_floating_point()]
        if not bool(torch.stack([tensor.isfinite().all() for tensor in tensors]).all()):
            raise UserError(
                "the weights are no numbers any more: a step ruined them whose loss was one; they were not saved\n"
                + self._advice()
            )

    def _advice(self) -> str:
        kept = (
            f"the last good checkpoint is {shown(self.path)}" if self.path.is_file() else "no checkpoint is there yet"
        )
        return f"{kept}\na lower optimizer.lr often helps"


def _names(trainer: L.Trainer, indices: list[int]) -> str:
    """The first files of those indices, and how many there are."""
    catalog = trainer.datamodule.catalog  # type: ignore[attr-defined]
    more = f" and {len(indices) - SHOWN} more" if len(indices) > SHOWN else ""
    return ", ".join(str(catalog.paths[index]) for index in indices[:SHOWN]) + more
