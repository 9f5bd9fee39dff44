"""Progressive resizing: early epochs train on small images; half the height and width cost a quarter of the time."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from torchvision.transforms.v2.functional import resize

from fish_lightning.errors import UserError

#: Sizes are multiples of this, in pixels, so that the first four halvings of a network leave no remainder.
MULTIPLE = 16


class ProgressiveResize(Callback):
    """Resizes training batches on the device, from small to full size; validation and test use the full size.

    Height and width are rounded to multiples of ``MULTIPLE``, so that the aspect ratio of early epochs varies.

    Args:
        start: size in the first epoch as a fraction of the full height and width, above 0, at most 1.
        full_from: fraction of the epochs after which images have the full size, 0 to 1.

    Source: J. Howard, "Training Imagenet in 3 hours for $25" (2018); M. Tan and Q. V. Le, EfficientNetV2 (2021),
    arXiv:2104.00298, section 4.
    """

    def __init__(self, start: float = 0.5, full_from: float = 0.75) -> None:
        for name, value in (("start", start), ("full_from", full_from)):
            if not isinstance(value, int | float) or not 0 <= value <= 1 or (name == "start" and value == 0):
                raise UserError(f"callbacks.progressive.{name}={value}: expected a fraction, at most 1")
        self.start, self.full_from = start, full_from

    def scale(self, epoch: int, epochs: int) -> float:
        """Return the fraction of the full size in an epoch (from 0) of ``epochs``; it grows linearly."""
        small = round(epochs * self.full_from)
        return 1.0 if epoch >= small else self.start + (1 - self.start) * epoch / small

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Resize the batch before the step."""
        scale = self.scale(trainer.current_epoch, trainer.max_epochs or 1)
        if scale < 1:
            height, width = (
                min(side, max(MULTIPLE, round(side * scale / MULTIPLE) * MULTIPLE)) for side in batch["image"].shape[2:]
            )
            batch["image"] = resize(batch["image"], [height, width], antialias=True)
