"""Metrics that torchmetrics does not have."""

import torch
from torch import Tensor
from torchmetrics import Metric


class TrainingLoss(Metric):
    """Mean loss of the images of an epoch, without batches whose loss is NaN or infinite.

    ``torchmetrics.MeanMetric`` checks for such values on the host, which synchronizes a GPU at each step.
    """

    total: Tensor
    images: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("images", torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, loss: Tensor, images: int) -> None:
        """Add the mean loss of a batch."""
        finite = loss.isfinite()
        self.total += torch.where(finite, loss, 0.0) * images
        self.images += finite * images

    def compute(self) -> Tensor:
        """Return the mean loss."""
        return self.total / self.images
