"""Small images first: an epoch at half the height and width costs a quarter, and early epochs learn as much from it."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from torchvision.transforms.v2.functional import resize

from fish_lightning.errors import UserError

#: Sizes are multiples of this, pixels: what a network of five halvings has no remainder from.
MULTIPLE = 16


class ProgressiveResize(Callback):
    """Shrinks training batches on the device, less from epoch to epoch; validation and test see the full size.

    Args:
        start: size in the first epoch, as a share of the full height and width, above 0 to 1.
        full_from: share of the epochs after which images have their full size, 0 to 1.

    Source: J. Howard, "Training Imagenet in 3 hours for $25" (2018); M. Tan and Q. V. Le, EfficientNetV2 (2021),
    arXiv:2104.00298, section 4.
    """

    def __init__(self, start: float = 0.5, full_from: float = 0.75) -> None:
        for name, value in (("start", start), ("full_from", full_from)):
            if not isinstance(value, int | float) or not 0 <= value <= 1 or (name == "start" and value == 0):
                raise UserError(f"callbacks.progressive.{name}={value}: it is a share, up to 1")
        self.start, self.full_from = start, full_from

    def scale(self, epoch: int, epochs: int) -> float:
        """Share of the full size in an epoch, counted from 0, of so many: it grows evenly, epoch by epoch."""
        small = round(epochs * self.full_from)
        return 1.0 if epoch >= small else self.start + (1 - self.start) * epoch / small

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Shrink the batch that the step is about to take."""
        scale = self.scale(trainer.current_epoch, trainer.max_epochs or 1)
        if scale < 1:
            height, width = (
                min(side, max(MULTIPLE, round(side * scale / MULTIPLE) * MULTIPLE)) for side in batch["image"].shape[2:]
            )
            batch["image"] = resize(batch["image"], [height, width], antialias=True)
