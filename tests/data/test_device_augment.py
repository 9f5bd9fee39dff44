"""The device's augmentation: what albumentations does to an image, to a whole batch."""

import albumentations as A
import cv2
import numpy as np
import pytest
import torch
from albumentations.pytorch import ToTensorV2

from fish_lightning.data.dataset import KeyedRandomness, keyed_seed
from fish_lightning.data.device_augment import DeviceAugment
from fish_lightning.errors import UserError

N = 4000
TURN = A.Rotate((-35, 35), p=1.0, border_mode=cv2.BORDER_REFLECT_101)
NOTEBOOK = (TURN, A.HorizontalFlip(p=0.5), A.VerticalFlip(p=0.1))


def drawn(augment, n=N, epoch=0, seed=3):
    return augment.draw(seed, torch.full((n,), epoch), torch.arange(n))


def by_albumentations(image, n):
    """What the pipeline makes of an image, the same at each start; its transforms draw independently."""
    pipeline, randomness = A.Compose(NOTEBOOK), KeyedRandomness()
    for row in range(n):
        randomness.key(pipeline, keyed_seed(5, 0, row))
        yield pipeline(image=image)


def test_an_image_is_drawn_by_seed_epoch_and_row_alone():
    augment = DeviceAugment(NOTEBOOK)
    all_of_it = drawn(augment, 50)
    assert torch.equal(augment.draw(3, torch.zeros(2, dtype=torch.int64), torch.tensor([41, 7])), all_of_it[[41, 7]])
    assert not torch.equal(drawn(augment, 50, epoch=1), all_of_it)
    assert not torch.equal(drawn(augment, 50, seed=4), all_of_it)


def test_the_parameters_have_the_distribution_of_the_albumentations_pipeline():
    matrices = drawn(DeviceAugment(NOTEBOOK))
    mirrored = torch.linalg.det(matrices) < 0
    # Signs of the diagonal are the flips; undone, they leave the angle.
    down, across = matrices[:, 1, 1] < 0, matrices[:, 0, 0] < 0
    assert torch.equal(mirrored, across ^ down)
    assert float(across.float().mean()) == pytest.approx(0.5, abs=0.03)
    assert float(down.float().mean()) == pytest.approx(0.1, abs=0.02)
    assert float((across & down).float().mean()) == pytest.approx(0.05, abs=0.015)  # independent of one another
    sign = torch.where(across, -1.0, 1.0)
    angles = torch.rad2deg(torch.atan2(matrices[:, 1, 0] * sign, matrices[:, 0, 0] * sign))
    assert float(angles.min()) == pytest.approx(-35, abs=0.2)
    assert float(angles.max()) == pytest.approx(35, abs=0.2)
    shares = torch.histc(angles, bins=7, min=-35, max=35) / N
    assert shares.tolist() == pytest.approx([1 / 7] * 7, abs=0.02)


@pytest.mark.parametrize("angle", [-35.0, 12.0, 35.0])
def test_pixels_are_those_of_albumentations_at_the_same_angle(angle):
    rng = np.random.default_rng(0)
    image = cv2.GaussianBlur(rng.integers(0, 256, (60, 90, 3)).astype(np.uint8), (0, 0), 3)
    image = cv2.normalize(image, None, 0, 255, cv2.NORM_MINMAX)
    turned = A.Compose([A.Rotate((angle, angle), p=1.0, border_mode=cv2.BORDER_REFLECT_101)])(image=image)["image"]
    turn = np.deg2rad(angle)
    ways = [[[np.cos(t), -np.sin(t)], [np.sin(t), np.cos(t)]] for t in (turn, -turn)]
    batch = torch.from_numpy(np.stack([image, image])).permute(0, 3, 1, 2)
    ours = DeviceAugment(())(batch, torch.tensor(np.array(ways), dtype=torch.float32)).permute(0, 2, 3, 1).numpy()
    difference = min(np.abs(way.astype(int) - turned).mean() for way in ours)  # which way is positive does not matter
    assert difference < 1.5  # OpenCV's coordinates have 1/32 pixel


def test_flips_are_exact():
    batch = torch.randint(0, 256, (3, 3, 20, 31), dtype=torch.uint8)
    flips = torch.tensor([[[-1.0, 0], [0, 1]], [[1, 0], [0, -1]], [[1, 0], [0, 1]]])
    turned = DeviceAugment(())(batch, flips)
    assert torch.equal(turned[0], batch[0].flip(2))
    assert torch.equal(turned[1], batch[1].flip(1))
    assert torch.equal(turned[2], batch[2])


def test_a_batch_keeps_brightness_and_contrast_as_the_albumentations_pipeline_does():
    """The two pipelines on the same images: means and deviations of what comes out agree."""
    image = np.zeros((40, 60, 3), np.uint8)
    image[:20] = (200, 100, 50)
    image[:, :15] = (20, 220, 120)
    theirs = np.stack([turned["image"] for turned in by_albumentations(image, 1500)]).astype(float)
    augment = DeviceAugment(NOTEBOOK)
    batch = torch.from_numpy(np.stack([image] * 1500)).permute(0, 3, 1, 2)
    ours = augment(batch, drawn(augment, 1500)).permute(0, 2, 3, 1).numpy().astype(float)
    np.testing.assert_allclose(ours.mean(0), theirs.mean(0), atol=12)  # of each pixel: 3 sigma of 1500 draws
    np.testing.assert_allclose(ours.std(0), theirs.std(0), atol=14)
    assert np.abs(ours.mean(0) - theirs.mean(0)).mean() < 3


def test_augment_gpu_trains_as_the_loader_path_does(tmp_path, train_tiny):
    done = train_tiny(tmp_path, "augment=gpu", "trainer.max_epochs=1")
    assert done.returncode == 0, done.stderr
    assert "test accuracy" in done.stdout


def test_resident_images_are_evaluated_to_the_same_numbers(tmp_path, make_data, tiny_data, make_model, make_trainer):
    scores = []
    for settings in ({}, {"resident": True, "cache": "ram"}):
        plain = make_data(tiny_data).eval_transform
        data = make_data(tiny_data, train_transform=plain, eval_transform=plain, **settings)
        model = make_model(data)
        trainer = make_trainer(max_epochs=1)
        trainer.test(model, datamodule=data, verbose=False)
        scores.append(model.test_predictions())
    np.testing.assert_array_equal(scores[0].rows, scores[1].rows)
    np.testing.assert_array_equal(scores[0].probabilities, scores[1].probabilities)


def test_what_happens_is_what_the_pipeline_says():
    turned = DeviceAugment([A.VerticalFlip(p=1.0), A.Rotate((80, 100), p=0.25, border_mode=4), ToTensorV2()])
    matrices = drawn(turned)
    flipped = torch.tensor([[1.0, 0.0], [0.0, -1.0]])
    left = (matrices == flipped).all((1, 2))
    assert float(left.float().mean()) == pytest.approx(0.75, abs=0.03)
    # The image is flipped first: to find where a pixel comes from, the turn is undone first, and then the flip.
    angles = torch.rad2deg(torch.atan2(*(flipped @ matrices[~left])[:, :, 0].T.flip(0)))
    assert float(angles.min()) == pytest.approx(80, abs=0.5) and float(angles.max()) == pytest.approx(100, abs=0.5)


@pytest.mark.parametrize(
    ("transform", "name"),
    [(A.GaussianBlur(), "GaussianBlur"), (A.Rotate((-5, 5)), "Rotate"), (A.Affine(rotate=(-5, 5)), "Affine")],
)
def test_a_transform_that_the_device_does_not_do_is_refused(transform, name):
    with pytest.raises(UserError, match=f"transforms.train has {name}\n.*augment=cpu"):
        DeviceAugment([*NOTEBOOK, transform])


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("transforms=strong",), "has Affine, ColorJitter, GaussianBlur, CoarseDropout"),
        (("data.cache=off",), "it wants data.cache=on or data.cache=ram"),
    ],
)
def test_augment_gpu_says_what_it_cannot_do(tmp_path, train_tiny, overrides, words):
    done = train_tiny(tmp_path, "augment=gpu", *overrides)
    assert done.returncode == 1
    assert done.stderr.startswith("error: augment=gpu") and words in done.stderr
    assert len(done.stderr.splitlines()) <= 3
