"""Mixup and CutMix: images and labels are mixed alike, by a draw that depends on seed, epoch and batch alone."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from fish_lightning.errors import UserError
from fish_lightning.training.mix import Mix

MODEL = SimpleNamespace(class_names=("a", "b", "c"))


def batch_of(labels):
    """One color per image: its brightness tells which images were mixed, in which shares."""
    images = torch.arange(len(labels)).view(-1, 1, 1, 1).expand(-1, 3, 8, 8).mul(20).to(torch.uint8)
    return {"image": images.clone(), "label": torch.tensor(labels)}


def mixed(labels, epoch=0, batch_idx=0, **settings):
    batch = batch_of(labels)
    trainer = SimpleNamespace(current_epoch=epoch, global_rank=0, world_size=1)
    Mix(**({"seed": 1} | settings)).on_train_batch_start(trainer, MODEL, batch, batch_idx)
    return batch


def test_mixup_blends_images_and_labels_in_the_same_share():
    labels = [0, 1, 2, 0, 1, 2]
    batch = mixed(labels, mixup=1.0)
    image, target = batch["image"], batch["target"]
    assert image.dtype == torch.uint8 and torch.equal(target.sum(1), torch.ones(6))
    share = float(target[1, 1])  # of the image itself; the rest is of the one before it
    assert 0.01 < share < 0.99
    plain = batch_of(labels)["image"].float()
    assert torch.equal(image, (share * plain + (1 - share) * plain.roll(1, 0)).round().to(torch.uint8))
    one_hot = F.one_hot(torch.tensor(labels), 3).float()
    assert torch.allclose(target, share * one_hot + (1 - share) * one_hot.roll(1, 0))
    assert torch.equal(batch["label"], torch.tensor(labels))  # of the metrics


def test_cutmix_replaces_a_rectangle_and_its_share_of_the_label():
    labels = [0, 1, 2]
    batches = [mixed(labels, batch_idx=i, mixup=None, cutmix=1.0) for i in range(20)]
    shares = set()
    for batch in batches:
        own = (batch["image"] == batch_of(labels)["image"])[:, 0].float().mean((1, 2))
        assert torch.allclose(batch["target"][range(3), labels], own)
        shares.add(round(float(own[0]), 3))
    assert len(shares) > 8


def test_the_draw_depends_on_seed_epoch_and_batch_alone():
    labels = [0, 1, 2, 0]
    state = torch.get_rng_state()
    drawn = [mixed(labels, **key) for key in ({}, {"epoch": 1}, {"batch_idx": 1}, {"seed": 2})]
    assert torch.equal(torch.get_rng_state(), state)  # dropout draws what it would without mix
    torch.manual_seed(99)
    again = mixed(labels)
    assert torch.equal(again["image"], drawn[0]["image"]) and torch.equal(again["target"], drawn[0]["target"])
    assert len({tuple(batch["target"].flatten().tolist()) for batch in drawn}) == 4


def test_both_has_batches_of_either():
    colors = [len(mixed([0, 1, 2], batch_idx=i, mixup=1.0, cutmix=1.0)["image"][1].unique()) for i in range(30)]
    assert 5 < colors.count(1) < 25 and 5 < colors.count(2) < 25  # a blend has one color, CutMix two


def test_unreadable_images_are_not_mixed_into_others():
    batch = mixed([0, -1, 2, 1], mixup=1.0)
    assert torch.equal(batch["image"][1], batch_of([0, -1])["image"][1])
    assert batch["target"][1].sum() == 0
    share = float(batch["target"][2, 2])
    assert torch.equal(batch["image"][2], torch.full((3, 8, 8), share * 40 + (1 - share) * 0).round().to(torch.uint8))


@pytest.mark.parametrize(("labels", "settings"), [([0, 1], {"p": 0.0}), ([0], {}), ([0, -1], {})])
def test_a_batch_may_be_left_as_it_is(labels, settings):
    batch = mixed(labels, **settings)
    assert "target" not in batch and torch.equal(batch["image"], batch_of(labels)["image"])


def test_the_share_of_mixed_batches_is_p():
    mixes = ["target" in mixed([0, 1], batch_idx=i, p=0.3) for i in range(300)]
    assert 60 < sum(mixes) < 120


def test_one_of_both_must_be_set():
    with pytest.raises(UserError, match=r"callbacks\.mix: set mixup or cutmix"):
        Mix(1, mixup=None)


def test_the_classifier_learns_from_the_mixed_labels(make_data, make_model, make_trainer, tiny_data):
    data = make_data(tiny_data)
    model = make_model(data)
    seen = []
    criterion = model.train_criterion.forward
    model.train_criterion.forward = lambda logits, target: (seen.append(target), criterion(logits, target))[1]
    make_trainer(max_epochs=1, callbacks=[Mix(1, mixup=1.0)]).fit(model, datamodule=data)
    assert len(seen) > 4 and all(target.shape == (len(target), 3) for target in seen)
    assert sum(((target > 0.01) & (target < 0.99)).any() for target in seen) >= len(seen) - 2
