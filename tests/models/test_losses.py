"""Losses besides cross-entropy: their values, with labels and with the class probabilities of mixed images."""

import pytest
import torch
from torch.nn import functional as F

from fish_lightning.models.losses import CosineLoss, FocalLoss, class_probabilities

LOGITS = torch.tensor([[2.0, 0.5, -1.0], [0.1, 0.2, 0.3], [-3.0, 4.0, 0.0]])
LABELS = torch.tensor([0, 1, 2])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_focal_loss_without_focus_is_cross_entropy(smoothing):
    ours = FocalLoss(gamma=0, label_smoothing=smoothing)(LOGITS, LABELS)
    assert torch.allclose(ours, F.cross_entropy(LOGITS, LABELS, reduction="none", label_smoothing=smoothing))


def test_focal_loss_weights_each_image_by_its_error():
    p = LOGITS.softmax(1)[range(3), LABELS]
    assert torch.allclose(FocalLoss(gamma=2)(LOGITS, LABELS), -((1 - p) ** 2) * p.log())


def test_cosine_loss_is_one_minus_the_cosine_and_some_cross_entropy():
    cosine = LOGITS[range(3), LABELS] / LOGITS.norm(dim=1)
    assert torch.allclose(CosineLoss(cross_entropy=0)(LOGITS, LABELS), 1 - cosine)
    added = CosineLoss(cross_entropy=0.5)(LOGITS, LABELS) - CosineLoss(cross_entropy=0)(LOGITS, LABELS)
    assert torch.allclose(added, 0.5 * F.cross_entropy(LOGITS, LABELS, reduction="none"))


@pytest.mark.parametrize("loss", [FocalLoss(), CosineLoss(), FocalLoss(label_smoothing=0.1)])
def test_a_label_is_the_same_as_its_probabilities(loss):
    assert torch.allclose(loss(LOGITS, LABELS), loss(LOGITS, F.one_hot(LABELS, 3).float()))


def test_probabilities_are_smoothed_as_torch_does():
    wanted = class_probabilities(LABELS, 3, 0.3)
    assert torch.allclose(wanted[0], torch.tensor([0.8, 0.1, 0.1]))
    assert torch.allclose(wanted.sum(1), torch.ones(3))
