"""Rotations and flips of an albumentations pipeline on the device, for a whole batch at once.

Each image has its own angle and flips, drawn from (seed, epoch, index) with the distribution of the pipeline, and
corners are filled by reflection. ``torchvision.transforms.v2`` rotates a batch by a single angle and cannot reflect;
here one ``grid_sample`` applies all transforms.
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
    """The rotations and flips that follow the resize in a training pipeline, in any order.

    Args:
        transforms: albumentations transforms; a last ``ToTensorV2`` is ignored.

    Raises:
        UserError: a transform is not supported.
    """

    def __init__(self, transforms: Sequence[Any]) -> None:
        steps = list(transforms)
        if steps and isinstance(steps[-1], ToTensorV2):
            steps.pop()
        refused = [type(step).__name__ for step in steps if not _is_supported(step)]
        if refused:
            raise UserError(
                f"augment=gpu does not support {', '.join(refused)} in transforms.train\n"
                "supported: Rotate with border_mode=4, HorizontalFlip and VerticalFlip; for others use augment=cpu"
            )
        self.steps = steps

    def draw(self, seed: int, epochs: Tensor, indices: Tensor) -> Tensor:
        """Draw the angle and flips of each image.

        Args:
            seed: the run's random seed.
            epochs: (B,) int64 epoch of each image.
            indices: (B,) int64 index of each image in the catalog.

        Returns:
            (B, 2, 2) float32 matrices that map output coordinates (x right, y down, pixels from the center) to input
            coordinates.
        """
        numbers = keyed_uniform(seed, epochs.numpy(), indices.numpy(), 2 * len(self.steps))
        matrices = np.broadcast_to(np.eye(2), (len(indices), 2, 2))
        for step, chance, value in zip(self.steps, numbers[::2], numbers[1::2], strict=True):
            matrices = matrices @ np.where((chance < step.p)[:, None, None], _matrices(step, value), np.eye(2))
        return torch.from_numpy(matrices.astype(np.float32))

    def __call__(self, images: Tensor, matrices: Tensor) -> Tensor:
        """Rotate and flip a batch.

        Args:
            images: (B, 3, H, W) uint8 images.
            matrices: (B, 2, 2) matrices from :meth:`draw`, on the same device.

        Returns:
            (B, 3, H, W) uint8 images.
        """
        _, _, height, width = images.shape
        y = torch.arange(height, device=images.device, dtype=torch.float32) - (height - 1) / 2
        x = torch.arange(width, device=images.device, dtype=torch.float32) - (width - 1) / 2
        x, y = torch.meshgrid(x, y, indexing="xy")  # (H, W) each, pixels from the center
        m = matrices[:, :, :, None, None]
        # Written out: TF32 would round a matrix product by a tenth of a pixel.
        rows = [(m[:, i, 0] * x + m[:, i, 1] * y) * (2 / (side - 1)) for i, side in enumerate((width, height))]
        where = torch.stack(rows, -1)
        # align_corners reflects about the centers of the outermost pixels, as OpenCV's BORDER_REFLECT_101 does.
        warped = grid_sample(images.float(), where, mode="bilinear", padding_mode="reflection", align_corners=True)
        return warped.round().clamp(0, 255).to(torch.uint8)


def _is_supported(step: Any) -> bool:
    if isinstance(step, A.Rotate):
        plain = step.interpolation == cv2.INTER_LINEAR and not step.crop_border and step.rotate_method == "largest_box"
        return plain and step.border_mode == cv2.BORDER_REFLECT_101
    return isinstance(step, A.HorizontalFlip | A.VerticalFlip)


def _matrices(step: Any, value: Floats) -> Floats:
    """Return the (B, 2, 2) matrices of an applied step; ``value``, (B,) from 0 to 1, sets the angle of a rotation."""
    if isinstance(step, A.HorizontalFlip):
        return np.broadcast_to(np.diag([-1.0, 1.0]), (len(value), 2, 2))
    if isinstance(step, A.VerticalFlip):
        return np.broadcast_to(np.diag([1.0, -1.0]), (len(value), 2, 2))
    low, high = step.limit
    angle = np.deg2rad(low + (high - low) * value)
    cos, sin = np.cos(angle), np.sin(angle)
    return np.stack([np.stack([cos, -sin], 1), np.stack([sin, cos], 1)], 1)
