"""Turns and flips of an albumentations pipeline done on the device, to a whole batch at once.

The distribution is the pipeline's: each image has its own angle and flips, drawn from (seed, epoch, index), and corners
are filled by reflection. ``torchvision.transforms.v2`` turns a batch by one angle and cannot reflect; here one sampling
of the batch does all of them.
"""

from collections.abc import Sequence
from typing import Any

import albumentations as A
import cv2
import numpy as np
import numpy.typing as npt
import torch
from albumentations.pytorch import ToTensorV2
from torch import Tensor
from torch.nn.functional import grid_sample

from fish_lightning.data.keys import keyed_uniform
from fish_lightning.errors import UserError

Floats = npt.NDArray[np.float64]


class DeviceAugment:
    """What follows the resize in a training pipeline: rotations and flips, in any order.

    Args:
        transforms: of albumentations; a last ``ToTensorV2`` is ignored.

    Raises:
        UserError: there is a transform among them that is not done here.
    """

    def __init__(self, transforms: Sequence[Any]) -> None:
        steps = list(transforms)
        if steps and isinstance(steps[-1], ToTensorV2):
            steps.pop()
        refused = [type(step).__name__ for step in steps if not _done_here(step)]
        if refused:
            raise UserError(
                f"augment=gpu turns and flips, and transforms.train has {', '.join(refused)}\n"
                "it does A.Rotate with border_mode=4, A.HorizontalFlip and A.VerticalFlip; for others: augment=cpu"
            )
        self.steps = steps

    def draw(self, seed: int, epochs: Tensor, indices: Tensor) -> Tensor:
        """Angle and flips of each image.

        Args:
            seed: of the run.
            epochs: (B,) int64.
            indices: (B,) int64, in the catalog.

        Returns:
            (B, 2, 2) float32, what the coordinates of a result (x right, y down, from the centre, pixels) are
            multiplied by to find where it comes from.
        """
        numbers = keyed_uniform(seed, epochs.numpy(), indices.numpy(), 2 * len(self.steps))
        matrices = np.broadcast_to(np.eye(2), (len(indices), 2, 2))
        for step, happens, value in zip(self.steps, numbers[::2], numbers[1::2], strict=True):
            matrices = matrices @ np.where((happens < step.p)[:, None, None], _matrices(step, value), np.eye(2))
        return torch.from_numpy(matrices.astype(np.float32))

    def __call__(self, images: Tensor, matrices: Tensor) -> Tensor:
        """Turn and flip a batch.

        Args:
            images: (B, 3, H, W) uint8.
            matrices: (B, 2, 2), of :meth:`draw`, on the same device.

        Returns:
            (B, 3, H, W) uint8.
        """
        _, _, height, width = images.shape
        y = torch.arange(height, device=images.device, dtype=torch.float32) - (height - 1) / 2
        x = torch.arange(width, device=images.device, dtype=torch.float32) - (width - 1) / 2
        x, y = torch.meshgrid(x, y, indexing="xy")  # (H, W) each, pixels from the centre
        m = matrices[:, :, :, None, None]
        # Written out: a matrix product may be rounded to TF32, by a tenth of a pixel.
        rows = [(m[:, i, 0] * x + m[:, i, 1] * y) * (2 / (side - 1)) for i, side in enumerate((width, height))]
        where = torch.stack(rows, -1)
        # With corners aligned, reflection is about the centres of the outermost pixels: OpenCV's BORDER_REFLECT_101.
        turned = grid_sample(images.float(), where, mode="bilinear", padding_mode="reflection", align_corners=True)
        return turned.round().clamp(0, 255).to(torch.uint8)


def _done_here(step: Any) -> bool:
    if isinstance(step, A.Rotate):
        plain = step.interpolation == cv2.INTER_LINEAR and not step.crop_border and step.rotate_method == "largest_box"
        return plain and step.border_mode == cv2.BORDER_REFLECT_101
    return isinstance(step, A.HorizontalFlip | A.VerticalFlip)


def _matrices(step: Any, value: Floats) -> Floats:
    """(B, 2, 2) of a step that happens; ``value``, (B,) from 0 to 1, says how far it turns."""
    if isinstance(step, A.HorizontalFlip):
        return np.broadcast_to(np.diag([-1.0, 1.0]), (len(value), 2, 2))
    if isinstance(step, A.VerticalFlip):
        return np.broadcast_to(np.diag([1.0, -1.0]), (len(value), 2, 2))
    low, high = step.limit
    angle = np.deg2rad(low + (high - low) * value)
    cos, sin = np.cos(angle), np.sin(angle)
    return np.stack([np.stack([cos, -sin], 1), np.stack([sin, cos], 1)], 1)
