"""Averages of the weights over the steps of a run: they are validated, tested and saved in ``best.ckpt``."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from fish_lightning.errors import UserError


class WeightAverage(Callback):
    """Keeps an average of the network's weights, which replaces them during validation and after the last step.

    Running statistics of batch normalization are averaged as weights are. ``last.ckpt`` contains the weights that are
    trained, and the average in the state of this callback, so that a resumed run has both. Lightning's
    ``WeightAveraging`` leaves the average out of a checkpoint with ``save_weights_only``, which then contains weights
    that were not validated.

    Args:
        decay: decay rate of an exponential moving average, 0 to 1; it grows towards this value as (1 + n) / (10 + n),
            so that the average of a short run forgets the first steps. None: the plain mean of all steps from ``start``
            on.
        start: fraction of the run's steps after which averaging begins, 0 to 1; until then the average equals the
            weights.

    Source: Polyak and Juditsky 1992; Izmailov et al. 2018 (stochastic weight averaging, arXiv:1803.05407).
    """

    def __init__(self, decay: float | None = 0.999, start: float = 0.0) -> None:
        for name, value in (("decay", decay), ("start", start)):
            if value is not None and not 0 <= value < 1:
                raise UserError(f"callbacks.average.{name}={value}: expected a number in [0, 1)")
        self.decay, self.start = decay, start
        self._average: AveragedModel | None = None
        self._steps = 0  # whose weights were averaged
        self._first = 0.0  # step after which averaging begins

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Copy the network.

        Raises:
            UserError: weights are not in float32; steps of an average would vanish in 16 bits.
        """
        if stage == "fit":
            if str(trainer.precision).endswith("-true") and trainer.precision != "32-true":
                raise UserError(
                    f"callbacks.average requires weights in float32, not trainer.precision={trainer.precision}\n"
                    "use bf16-mixed, 16-mixed or 32-true"
                )
            self._average = AveragedModel(_network(pl_module), multi_avg_fn=self._update, use_buffers=True)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Move the copy to the device: a checkpoint is loaded before the network is there."""
        assert self._average is not None
        self._average.module.to(pl_module.device)  # its counter stays on the CPU: reading it must not wait for a GPU
        if self.start:
            self._first = self.start * trainer.estimated_stepping_batches

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add the weights of this step to the average."""
        assert self._average is not None
        if trainer.global_step == self._steps:  # accumulating
            return
        self._steps = trainer.global_step
        self._average.update_parameters(_network(pl_module))
        if self._steps <= self._first:
            self._average.n_averaged.zero_()  # the next update copies the weights

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Validate the average."""
        self._swap(pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Continue with the weights that are trained."""
        self._swap(pl_module)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave the average in the model, for a test without ``best.ckpt``."""
        self._swap(pl_module)
        self._average = None

    def state_dict(self) -> dict[str, Any]:
        """Return the average and the number of steps."""
        if self._average is None:
            return {}
        return {"average": self._average.state_dict(), "steps": self._steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        assert self._average is not None
        self._average.load_state_dict(state_dict["average"])
        self._steps = state_dict["steps"]

    @contextmanager
    def in_model(self, pl_module: L.LightningModule) -> Iterator[None]:
        """Put the average into the model while the block runs, to save the weights that were validated."""
        self._swap(pl_module)
        try:
            yield
        finally:
            self._swap(pl_module)

    def _update(self, averages: Sequence[Tensor], weights: Sequence[Tensor], count: Tensor | int) -> None:
        """Update the averages of ``count`` steps by the weights of the next."""
        assert self._average is not None
        n = int(self._average.n_averaged)
        share = 1 / (n + 1) if self.decay is None else 1 - min(self.decay, (1 + n) / (10 + n))
        for average, weight in zip(averages, weights, strict=True):
            if average.is_floating_point():
                average.lerp_(weight, share)
            else:
                average.copy_(weight)  # the number of batches that batch normalization has seen

    @torch.no_grad()
    def _swap(self, pl_module: L.LightningModule) -> None:
        """Exchange average and weights in place: optimizers and compiled networks refer to the tensors."""
        if self._average is None:
            return
        pairs = zip(_tensors(self._average.module), _tensors(_network(pl_module)), strict=True)
        for average, weight in pairs:
            kept = average.clone()
            average.copy_(weight)
            weight.copy_(kept)


def _network(pl_module: L.LightningModule) -> nn.Module:
    network = pl_module.network
    assert isinstance(network, nn.Module)
    return network


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]
