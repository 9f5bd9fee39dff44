"""Random numbers of a training step, such as dropout, depend on (seed, epoch, batch, process) alone."""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from fish_lightning.data.keys import keyed_seed


class StepSeeds(Callback):
    """Seeds torch before each training step, so that a resumed run draws the same numbers as an uninterrupted one.

    Restoring the state of the generator would not suffice: each loader that a resumed run creates draws from it too.

    Args:
        seed: the run's random seed.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seed this process's generators, on all devices."""
        step = keyed_seed(self.seed, trainer.current_epoch, batch_idx)
        torch.manual_seed(keyed_seed(step, trainer.global_rank, 0))
