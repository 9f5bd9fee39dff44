"""Augmentation on the device: what albumentations does to one image, for a whole batch."""

import albumentations as A
import cv2
import hydra
import numpy as np
import pytest
import torch
from albumentations.pytorch import ToTensorV2
from hydra import compose, initialize_config_dir

from fish_lightning.cli import CONF
from fish_lightning.data.dataset import KeyedRandomness
from fish_lightning.data.device_augment import DeviceAugment
from fish_lightning.data.keys import keyed_seed
from fish_lightning.errors import UserError

N = 4000
TURN = A.Rotate((-35, 35), p=1.0, border_mode=cv2.BORDER_REFLECT_101)
NOTEBOOK = (TURN, A.HorizontalFlip(p=0.5), A.VerticalFlip(p=0.1))


def drawn(augment, n=N, epoch=0, seed=3):
    return augment.draw(seed, torch.full((n,), epoch), torch.arange(n))


def by_albumentations(image, n):
    """Yield ``n`` augmentations of an image, with fixed seeds and independent transforms."""
    pipeline, randomness = A.Compose(NOTEBOOK), KeyedRandomness()
    for index in range(n):
        randomness.key(pipeline, keyed_seed(5, 0, index))
        yield pipeline(image=image)


def test_draw_depends_on_seed_epoch_and_index_alone():
    augment = DeviceAugment(NOTEBOOK)
    first = drawn(augment, 50)
    assert torch.equal(augment.draw(3, torch.zeros(2, dtype=torch.int64), torch.tensor([41, 7])), first[[41, 7]])
    assert not torch.equal(drawn(augment, 50, epoch=1), first)
    assert not torch.equal(drawn(augment, 50, seed=4), first)


def test_parameters_have_the_distribution_of_the_albumentations_pipeline():
    matrices = drawn(DeviceAugment(NOTEBOOK))
    mirrored = torch.linalg.det(matrices) < 0
    # The signs of the diagonal are the flips; without them, the angle remains.
    down, across = matrices[:, 1, 1] < 0, matrices[:, 0, 0] < 0
    assert torch.equal(mirrored, across ^ down)
    assert float(across.float().mean()) == pytest.approx(0.5, abs=0.03)
    assert float(down.float().mean()) == pytest.approx(0.1, abs=0.02)
    assert float((across & down).float().mean()) == pytest.approx(0.05, abs=0.015)  # independent
    sign = torch.where(across, -1.0, 1.0)
    angles = torch.rad2deg(torch.atan2(matrices[:, 1, 0] * sign, matrices[:, 0, 0] * sign))
    assert float(angles.min()) == pytest.approx(-35, abs=0.2)
    assert float(angles.max()) == pytest.approx(35, abs=0.2)
    shares = torch.histc(angles, bins=7, min=-35, max=35) / N
    assert shares.tolist() == pytest.approx([1 / 7] * 7, abs=0.02)


@pytest.mark.parametrize("angle", [-35.0, 12.0, 35.0])
def test_pixels_equal_albumentations_at_the_same_angle(angle):
    rng = np.random.default_rng(0)
    image = cv2.GaussianBlur(rng.integers(0, 256, (60, 90, 3)).astype(np.uint8), (0, 0), 3)
    image = cv2.normalize(image, None, 0, 255, cv2.NORM_MINMAX)
    turned = A.Compose([A.Rotate((angle, angle), p=1.0, border_mode=cv2.BORDER_REFLECT_101)])(image=image)["image"]
    turn = np.deg2rad(angle)
    ways = [[[np.cos(t), -np.sin(t)], [np.sin(t), np.cos(t)]] for t in (turn, -turn)]
    batch = torch.from_numpy(np.stack([image, image])).permute(0, 3, 1, 2)
    ours = DeviceAugment(())(batch, torch.tensor(np.array(ways), dtype=torch.float32)).permute(0, 2, 3, 1).numpy()
    difference = min(np.abs(way.astype(int) - turned).mean() for way in ours)  # the sign of the angle does not matter
    assert difference < 1.5  # OpenCV rounds coordinates to 1/32 pixel


def test_flips_are_exact():
    batch = torch.randint(0, 256, (3, 3, 20, 31), dtype=torch.uint8)
    flips = torch.tensor([[[-1.0, 0], [0, 1]], [[1, 0], [0, -1]], [[1, 0], [0, 1]]])
    turned = DeviceAugment(())(batch, flips)
    assert torch.equal(turned[0], batch[0].flip(2))
    assert torch.equal(turned[1], batch[1].flip(1))
    assert torch.equal(turned[2], batch[2])


def test_batch_has_the_mean_and_deviation_of_the_albumentations_pipeline():
    image = np.zeros((40, 60, 3), np.uint8)
    image[:20] = (200, 100, 50)
    image[:, :15] = (20, 220, 120)
    theirs = np.stack([turned["image"] for turned in by_albumentations(image, 1500)]).astype(float)
    augment = DeviceAugment(NOTEBOOK)
    batch = torch.from_numpy(np.stack([image] * 1500)).permute(0, 3, 1, 2)
    ours = augment(batch, drawn(augment, 1500)).permute(0, 2, 3, 1).numpy().astype(float)
    np.testing.assert_allclose(ours.mean(0), theirs.mean(0), atol=12)  # per pixel: 3 sigma of 1500 draws
    np.testing.assert_allclose(ours.std(0), theirs.std(0), atol=14)
    assert np.abs(ours.mean(0) - theirs.mean(0)).mean() < 3


def test_augment_gpu_trains(tmp_path, train_tiny):
    done = train_tiny(tmp_path, "augment=gpu", "trainer.max_epochs=1")
    assert done.returncode == 0, done.stderr
    assert "test accuracy" in done.stdout


def test_resident_images_get_the_same_test_predictions(tmp_path, make_data, tiny_data, make_model, make_trainer):
    scores = []
    for settings in ({}, {"resident": True, "cache": "ram"}):
        plain = make_data(tiny_data).eval_transform
        data = make_data(tiny_data, train_transform=plain, eval_transform=plain, **settings)
        model = make_model(data)
        trainer = make_trainer(max_epochs=1)
        trainer.test(model, datamodule=data, verbose=False)
        scores.append(model.test_predictions())
    np.testing.assert_array_equal(scores[0].indices, scores[1].indices)
    np.testing.assert_array_equal(scores[0].probabilities, scores[1].probabilities)


def test_probabilities_and_order_are_those_of_the_pipeline():
    augment = DeviceAugment([A.VerticalFlip(p=1.0), A.Rotate((80, 100), p=0.25, border_mode=4), ToTensorV2()])
    matrices = drawn(augment)
    flipped = torch.tensor([[1.0, 0.0], [0.0, -1.0]])
    left = (matrices == flipped).all((1, 2))
    assert float(left.float().mean()) == pytest.approx(0.75, abs=0.03)
    # The image is flipped first: mapping a pixel to its source undoes the rotation first.
    angles = torch.rad2deg(torch.atan2(*(flipped @ matrices[~left])[:, :, 0].T.flip(0)))
    assert float(angles.min()) == pytest.approx(80, abs=0.5) and float(angles.max()) == pytest.approx(100, abs=0.5)


@pytest.mark.parametrize(
    ("transform", "name"),
    [(A.GaussianBlur(), "GaussianBlur"), (A.Rotate((-5, 5)), "Rotate"), (A.Affine(rotate=(-5, 5)), "Affine")],
)
def test_unsupported_transform_is_an_error(transform, name):
    with pytest.raises(UserError, match=f"does not support {name} in transforms.train\n.*augment=cpu"):
        DeviceAugment([*NOTEBOOK, transform])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("transforms=strong",), "augment=gpu does not support Affine, ColorJitter, GaussianBlur, CoarseDropout in"),
        (("data.cache=off",), "augment=gpu requires data.cache=on or data.cache=ram"),
    ],
)
def test_unsupported_config_of_augment_gpu_is_a_short_error(tiny_data, tmp_path, overrides, message):
    with initialize_config_dir(CONF, version_base="1.3"):
        settings = ("data=folder", f"data.root={tiny_data}", f"paths.cache={tmp_path}", "data.find_copies=false")
        data = hydra.utils.instantiate(compose("train", [*settings, "augment=gpu", "split=random", *overrides]).data)
    with pytest.raises(UserError) as error:
        data.setup()
    assert str(error.value).startswith(message) and len(str(error.value).splitlines()) <= 2
