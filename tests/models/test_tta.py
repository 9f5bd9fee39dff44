"""Test-time augmentation: the mean of the probabilities of all views."""

import pytest
import torch

from fish_lightning.models.tta import VIEWS, mean_log_probabilities, views

IMAGES = torch.arange(2 * 3 * 4 * 6).view(2, 3, 4, 6)


def test_flips_are_the_four_mirrorings():
    seen = list(views(IMAGES, "flips"))
    assert torch.equal(seen[0], IMAGES)
    assert len({tuple(view.flatten().tolist()) for view in seen}) == 4
    assert all(view.shape == IMAGES.shape for view in seen)
    assert torch.equal(seen[1][..., 0], IMAGES[..., -1]) and torch.equal(seen[2][:, :, 0], IMAGES[:, :, -1])


def test_turns_are_the_four_quarter_turns():
    seen = list(views(IMAGES, "turns"))
    assert [tuple(view.shape[2:]) for view in seen] == [(4, 6), (6, 4), (4, 6), (6, 4)]
    assert torch.equal(seen[2], IMAGES.flip(2, 3))
    assert torch.equal(seen[1].rot90(-1, (2, 3)), IMAGES)


def test_probabilities_are_averaged_not_logits():
    logits = [torch.tensor([[10.0, 0.0]]), torch.tensor([[0.0, 1.0]])]
    mean = torch.stack([part.softmax(1) for part in logits]).mean(0)
    assert torch.allclose(mean_log_probabilities(logits).exp(), mean)


def test_impossible_classes_have_finite_logarithms():
    assert bool(mean_log_probabilities([torch.tensor([[1000.0, 0.0]])]).isfinite().all())


@pytest.mark.parametrize("tta", sorted(VIEWS))
def test_the_test_uses_all_views_and_the_features_of_the_plain_image(make_data, make_model, tiny_data, tta):
    data = make_data(tiny_data)
    model = make_model(data, name="resnet18").eval()
    images = next(iter(data.val_dataloader()))["image"]
    with torch.no_grad():
        plain, features = model.logits_and_features(images)
        model.tta = tta
        logits, kept = model.logits_and_features(images)
        mean = torch.stack([model(view).softmax(1) for view in views(images, tta)]).mean(0)
    assert torch.equal(kept, features) and not torch.allclose(logits.softmax(1), plain.softmax(1), atol=1e-6)
    assert torch.allclose(logits.softmax(1), mean, atol=1e-6)
