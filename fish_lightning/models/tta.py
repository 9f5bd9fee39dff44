"""Test-time augmentation: the mean of the probabilities of several views of an image."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

#: The views of each setting, the plain image first; an image costs as many times as there are views.
VIEWS: dict[str, tuple[Callable[[Tensor], Tensor], ...]] = {
    "flips": (
        lambda x: x,
        lambda x: x.flip(3),
        lambda x: x.flip(2),
        lambda x: x.flip(2, 3),
    ),
    "turns": (  # by transposing and flipping, which ONNX has; rot90 gives the same
        lambda x: x,
        lambda x: x.transpose(2, 3).flip(2),
        lambda x: x.flip(2, 3),
        lambda x: x.transpose(2, 3).flip(3),
    ),
}


def views(images: Tensor, tta: str) -> Iterator[Tensor]:
    """Yield the views of images (N, 3, H, W); quarter turns exchange height and width.

    Args:
        images: images of any dtype.
        tta: a key of ``VIEWS``.
    """
    return (view(images) for view in VIEWS[tta])


def mean_log_probabilities(logits: Sequence[Tensor]) -> Tensor:
    """Return (N, C) logarithms of the mean probabilities of logits (N, C)."""
    probabilities = torch.stack([part.double().softmax(1) for part in logits]).mean(0)
    return probabilities.clamp_min(1e-30).log().float()
