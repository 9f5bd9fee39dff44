"""Transforms allowed in a checkpoint."""

import albumentations as A
import pytest
from albumentations.pytorch import ToTensorV2

from fish_lightning.models.whitelist import ALLOWED_TRANSFORMS, pipeline_fault


def test_a_pipeline_of_allowed_transforms_passes():
    nested = A.Sequential([A.CLAHE(), A.Normalize()])
    assert pipeline_fault(A.to_dict(A.Compose([A.Resize(8, 8), nested, A.ToFloat(), ToTensorV2()]))) is None


@pytest.mark.parametrize(
    ("transforms", "words"),
    [
        ([], "the last transform is not ToTensorV2"),
        ([A.Resize(8, 8)], "the last transform is not ToTensorV2"),
        ([A.Resize(8, 10_001), ToTensorV2()], "a size above 10,000 pixels"),
        ([A.Sequential([A.PadIfNeeded(20_000, 8)]), ToTensorV2()], "a size above 10,000 pixels"),
    ],
)
def test_pipeline_that_makes_no_tensor_or_a_huge_one_is_an_error(transforms, words):
    assert pipeline_fault(A.to_dict(A.Compose(transforms))) == words


def test_all_other_transforms_are_named_wherever_they_are_nested():
    pipeline = A.Compose([A.Resize(8, 8), A.Sequential([A.TextImage("font.ttf")]), A.HueSaturationValue()])
    first, second = str(pipeline_fault(A.to_dict(pipeline))).splitlines()
    assert first == "HueSaturationValue, TextImage cannot be stored in a checkpoint"
    assert second.startswith("allowed: AutoContrast, CLAHE, CenterCrop, Compose, ")


def test_every_allowed_name_exists():
    assert all(hasattr(A, name) or name == "ToTensorV2" for name in ALLOWED_TRANSFORMS)
