"""The notebook's augmentation on the device: a whole batch is turned and flipped at once.

The same distribution as ``conf/transforms/pipeline.yaml`` gives on the CPU: each image has its own angle and flips,
drawn from (seed, epoch, row), and corners are filled by reflection. ``torchvision.transforms.v2`` turns a batch by one
angle and cannot reflect; here one sampling of the batch does all three.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import grid_sample

_STREAM = 0x9E3779B97F4A7C15


class DeviceAugment:
    """Rotation by a uniform angle, then flips.

    Args:
        limit: largest angle to either side, degrees.
        horizontal: probability of a horizontal flip, 0 to 1.
        vertical: of a vertical one.
    """

    def __init__(self, limit: float = 35.0, horizontal: float = 0.5, vertical: float = 0.1) -> None:
        self.limit, self.horizontal, self.vertical = limit, horizontal, vertical

    def draw(self, seed: int, epochs: Tensor, rows: Tensor) -> Tensor:
        """Angle and flips of each image.

        Args:
            seed: of the run.
            epochs: (B,) int64.
            rows: (B,) int64.

        Returns:
            (B, 2, 2) float32, what the coordinates of a result (x right, y down, from the centre, pixels) are
            multiplied by to find where it comes from.
        """
        angle, horizontal, vertical = _uniform(seed, epochs.numpy(), rows.numpy(), 3)
        angle = np.deg2rad((2 * angle - 1) * self.limit)
        across, down = np.where(horizontal < self.horizontal, -1.0, 1.0), np.where(vertical < self.vertical, -1.0, 1.0)
        cos, sin = np.cos(angle), np.sin(angle)
        matrices = np.stack([np.stack([cos * across, -sin * down], 1), np.stack([sin * across, cos * down], 1)], 1)
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
        grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)  # (H, W, 2), pixels from the centre
        where = torch.einsum("bij,hwj->bhwi", matrices, grid)
        where = where * torch.tensor([2 / (width - 1), 2 / (height - 1)], device=images.device)
        # With corners aligned, reflection is about the centres of the outermost pixels: OpenCV's BORDER_REFLECT_101.
        turned = grid_sample(images.float(), where, mode="bilinear", padding_mode="reflection", align_corners=True)
        return turned.round().clamp(0, 255).to(torch.uint8)


def _uniform(
    seed: int, epochs: npt.NDArray[np.int64], rows: npt.NDArray[np.int64], count: int
) -> npt.NDArray[np.float64]:
    """(count, B) numbers, 0 to 1, from (seed, epoch, row) alone: splitmix64 of them all at once."""
    x = np.zeros(len(rows), np.uint64)
    with np.errstate(over="ignore"):
        for part in (np.full(len(rows), seed), epochs, rows):
            x = _mixed(x + part.astype(np.uint64) + np.uint64(_STREAM))
        numbers = [_mixed(x + np.uint64(i + 1) * np.uint64(_STREAM)) for i in range(count)]
    return np.stack(numbers).astype(np.float64) / 2.0**64


def _mixed(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: npt.NDArray[np.uint64] = x ^ (x >> np.uint64(31))
    return mixed
