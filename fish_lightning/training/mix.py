"""Mixup and CutMix: a training image is mixed with another of its batch, and its label too."""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torchvision.transforms import v2

from fish_lightning.data.dataset import UNREADABLE
from fish_lightning.data.keys import keyed_seed
from fish_lightning.distributed.ranks import gathered_rows
from fish_lightning.errors import UserError


class Mix(Callback):
    """Mixes the images of a training batch on the device; the classifier learns from ``batch["target"]``.

    The draw depends on (seed, epoch, batch) alone, and images are mixed over the whole batch of all processes, so that
    two processes train as one. Metrics compare with the labels of the images before they were mixed.

    Args:
        seed: the run's random seed.
        mixup: shape parameter of mixup's Beta distribution, above 0; None: no mixup.
        cutmix: shape parameter of CutMix's Beta distribution, above 0; None: no CutMix. Where both are set, each batch
            has one of them at random.
        p: fraction of the batches that are mixed, 0 to 1.

    Source: Zhang et al. 2018 (mixup, arXiv:1710.09412); Yun et al. 2019 (CutMix, arXiv:1905.04899).
    """

    def __init__(self, seed: int, mixup: float | None = 0.2, cutmix: float | None = None, p: float = 1.0) -> None:
        if mixup is None and cutmix is None:
            raise UserError("callbacks.mix: set mixup or cutmix, or leave out both with mix=none")
        self.seed, self.mixup, self.cutmix, self.p = seed, mixup, cutmix, p

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Mix the batch before the step."""
        images, labels = (gathered_rows(batch[name]) for name in ("image", "label"))
        with torch.random.fork_rng(devices=[]):  # torchvision draws from torch's generator of the CPU
            torch.manual_seed(keyed_seed(self.seed, trainer.current_epoch, batch_idx))
            readable = labels != UNREADABLE
            if len(labels[readable]) < 2 or torch.rand(()) >= self.p:
                return
            classes = len(pl_module.class_names)  # type: ignore[arg-type]
            chosen = ((v2.MixUp, self.mixup), (v2.CutMix, self.cutmix))
            mixes = [mix(alpha=alpha, num_classes=classes) for mix, alpha in chosen if alpha is not None]
            mixed, targets = v2.RandomChoice(mixes)(images[readable].float(), labels[readable])
        images[readable] = mixed.round().to(images.dtype)
        target = torch.zeros(len(labels), classes, device=targets.device)
        target[readable] = targets
        own = slice(trainer.global_rank, None, trainer.world_size)
        batch["image"], batch["target"] = images[own], target[own]
