"""Metrics that torchmetrics does not have."""

import torch
from torch import Tensor
from torchmetrics import Metric


class TrainingMean(Metric):
    """Mean over the images of an epoch of what their batches have as a mean, without NaN and infinite values.

    ``torchmetrics.MeanMetric`` checks for such values on the host, which synchronizes a GPU at each step.
    """

    total: Tensor
    images: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("images", torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, mean: Tensor, images: int) -> None:
        """Add the mean of a batch."""
        finite = mean.isfinite()
        self.total += torch.where(finite, mean, 0.0) * images
        self.images += finite * images

    def compute(self) -> Tensor:
        """Return the mean."""
        return self.total / self.images

    def sums(self) -> tuple[float, float]:
        """Return total and images of this process, for a checkpoint within an epoch."""
        return float(self.total), float(self.images)

    def restore(self, sums: tuple[float, float]) -> None:
        """Continue from what :meth:`sums` returned."""
        self.total.fill_(sums[0])
        self.images.fill_(sums[1])
