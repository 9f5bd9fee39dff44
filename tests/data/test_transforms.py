"""Warping transforms: bit-identical to those of albumentations."""

import albumentations as A
import numpy as np
import pytest

from fish_lightning.data import transforms


def images(channels=3, dtype=np.uint8):
    values = np.random.default_rng(0).integers(0, 256, (20, 61, 90, channels))
    return (values / 255).astype(dtype) if dtype == np.float32 else values.astype(dtype)


SETTINGS = {
    "Rotate": {"limit": (-35, 35), "p": 0.9},
    "Affine": {
        "rotate": (-180, 180),
        "scale": (0.75, 1.3),
        "translate_percent": (-0.1, 0.1),
        "shear": (-8, 8),
        "p": 0.9,
    },
}


@pytest.mark.parametrize("fill", [0, 7.5, (10, 20, 30)])
@pytest.mark.parametrize("border_mode", [0, 1, 4])
@pytest.mark.parametrize("name", SETTINGS)
def test_results_are_bit_identical_to_albumentations(name, border_mode, fill):
    options = SETTINGS[name] | {"border_mode": border_mode, "fill": fill}
    ours, theirs = (A.Compose([getattr(of, name)(**options)], seed=3) for of in (transforms, A))
    warped = 0
    for image in images():
        expected = theirs(image=image)["image"]
        np.testing.assert_array_equal(ours(image=image)["image"], expected)
        warped += not np.array_equal(expected, image)
    assert warped > 10


@pytest.mark.parametrize(("channels", "dtype"), [(1, np.uint8), (4, np.uint8), (3, np.float32)])
def test_other_channels_and_types_are_left_to_albumentations(channels, dtype):
    ours, theirs = (A.Compose([of.Rotate((-35, 35), p=1.0)], seed=3) for of in (transforms, A))
    for image in images(channels, dtype):
        np.testing.assert_array_equal(ours(image=image)["image"], theirs(image=image)["image"])
