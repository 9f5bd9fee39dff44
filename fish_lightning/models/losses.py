"""Training losses besides cross-entropy; each returns one value per image.

Targets are labels (N,) or, for mixed images, class probabilities (N, C).
"""

from torch import Tensor, nn
from torch.nn import functional as F


class FocalLoss(nn.Module):
    """Cross-entropy in which images that are recognized with confidence count less.

    Args:
        gamma: focusing parameter, 0 or more; the higher, the less they count; 0: cross-entropy.
        label_smoothing: label smoothing, 0 to 1.

    Source: Lin et al. 2017 (arXiv:1708.02002), for several classes.
    """

    def __init__(self, gamma: float = 2.0, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.gamma, self.label_smoothing = gamma, label_smoothing

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return (N,) losses of logits (N, C)."""
        log_p = F.log_softmax(logits.float(), 1)
        wanted = class_probabilities(target, logits.shape[1], self.label_smoothing)
        return -(wanted * (1 - log_p.exp()) ** self.gamma * log_p).sum(1)


class CosineLoss(nn.Module):
    """One minus the cosine between logits and target; its gradient does not depend on the size of the logits.

    The cosine leaves that size undetermined, and with it the probabilities. The cross-entropy of the same logits, with
    a small weight, determines it.

    Args:
        cross_entropy: weight of the cross-entropy, 0 or more.
        label_smoothing: label smoothing, 0 to 1.

    Source: Barz and Denzler 2020, "Deep Learning on Small Datasets without Pre-Training using Cosine Loss"
    (arXiv:1901.09054); there the cross-entropy has a layer of its own.
    """

    def __init__(self, cross_entropy: float = 0.1, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.cross_entropy, self.label_smoothing = cross_entropy, label_smoothing

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return (N,) losses of logits (N, C)."""
        logits = logits.float()
        wanted = class_probabilities(target, logits.shape[1], self.label_smoothing)
        cosine: Tensor = F.cosine_similarity(logits, wanted, dim=1)
        return 1 - cosine - self.cross_entropy * (wanted * F.log_softmax(logits, 1)).sum(1)


def class_probabilities(target: Tensor, classes: int, label_smoothing: float = 0.0) -> Tensor:
    """Return targets as class probabilities (N, C), smoothed as ``torch.nn.CrossEntropyLoss`` does."""
    wanted = target if target.dim() == 2 else F.one_hot(target, classes)
    return wanted.float() * (1 - label_smoothing) + label_smoothing / classes
