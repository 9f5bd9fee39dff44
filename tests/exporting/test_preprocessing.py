"""The pipeline in the graph makes the pixels of albumentations, to the last bit."""

import albumentations as A
import cv2
import numpy as np
import pytest
from albumentations.augmentations.crops.transforms import CropSizeError

pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
from onnx import TensorProto, helper

from fish_lightning.errors import UserError
from fish_lightning.exporting.preprocessing import Nodes, add_preprocessing
from fish_lightning.models.exported import IMAGES, PIXELS, Session

#: Landscape, portrait, odd, tiny, a single row of pixels, and the size that the pipelines make.
SIZES = [(445, 590), (101, 77), (320, 480), (80, 120), (33, 31), (7, 5), (1, 1), (1, 9), (301, 3), (900, 1200)]
PIPELINES = {
    "resize": [A.Resize(80, 120)],
    "half": [A.Resize(160, 240)],
    "smallest": [A.SmallestMaxSize(72), A.CenterCrop(64, 60)],
    "longest": [A.NoOp(), A.LongestMaxSize(64), A.PadIfNeeded(65, 70, fill=7)],
    "nested": [A.Sequential([A.Resize(40, 50)], p=1), A.CenterCrop(31, 32)],
}


def as_dict(*steps):
    return A.to_dict(A.Compose([*steps, A.ToTensorV2()]))


def output_size(transform):
    return add_preprocessing(Nodes(""), IMAGES, PIXELS, transform)


def session_of(*steps):
    nodes = Nodes("preprocessing")
    height, width = add_preprocessing(nodes, IMAGES, PIXELS, as_dict(*steps))
    graph = helper.make_graph(
        nodes.nodes,
        "preprocessing",
        [helper.make_tensor_value_info(IMAGES, TensorProto.UINT8, ["N", "H", "W", 3])],
        [helper.make_tensor_value_info(PIXELS, TensorProto.UINT8, ["N", 3, height, width])],
        nodes.constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    return Session(model.SerializeToString(), [PIXELS])


@pytest.mark.parametrize("name", PIPELINES)
def test_pixels_are_those_of_albumentations_to_the_last_bit(name):
    session, pipeline = session_of(*PIPELINES[name]), A.Compose(PIPELINES[name])
    for number, size in enumerate(SIZES):
        images = np.random.default_rng(number).integers(0, 256, (2, *size, 3), dtype=np.uint8)
        (found,) = session(images)
        expected = [pipeline(image=image)["image"].transpose(2, 0, 1) for image in images]
        assert np.array_equal(found, expected), size


def test_a_crop_larger_than_its_image_fails_as_in_albumentations():
    steps = [A.CenterCrop(64, 60)]
    small = np.zeros((63, 90, 3), np.uint8)
    with pytest.raises(CropSizeError):
        A.Compose(steps)(image=small)
    with pytest.raises(Exception, match="reshaped"):
        session_of(*steps)(small[None])


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([A.CLAHE(p=1), A.Resize(8, 8)], "transforms.eval: CLAHE cannot be computed in the graph"),
        ([A.Resize(8, 8), A.HorizontalFlip(p=1)], "HorizontalFlip with p=1.0? cannot|HorizontalFlip cannot"),
        ([A.Resize(8, 8, p=0.5)], r"Resize with p=0.5 cannot be computed in the graph\nexpected p=1"),
        ([A.Resize(8, 8, interpolation=cv2.INTER_AREA)], "Resize with interpolation=3 cannot"),
        ([A.Resize(8, 8, area_for_downscale="image")], "Resize with area_for_downscale cannot"),
        ([A.CenterCrop(8, 8, pad_if_needed=True)], "CenterCrop with pad_if_needed cannot"),
        ([A.LongestMaxSize([8, 9])], "LongestMaxSize without one max_size cannot"),
        ([A.Resize(8, 8), A.PadIfNeeded(9, 9, fill=[1, 2, 3])], "PadIfNeeded cannot"),
        ([A.Resize(8, 8), A.PadIfNeeded(9, 9, border_mode=cv2.BORDER_REFLECT_101)], "PadIfNeeded cannot"),
        ([A.LongestMaxSize(64)], "leaves images of different sizes, and the graph requires one"),
        ([A.LongestMaxSize(64), A.PadIfNeeded(64, 63)], "leaves images of different sizes"),
    ],
)
def test_what_the_graph_cannot_compute_is_refused_by_name(steps, message):
    with pytest.raises(UserError, match=message) as error:
        output_size(as_dict(*steps))
    assert len(str(error.value).splitlines()) == 2


def test_the_size_is_known_before_anything_is_computed():
    assert output_size(as_dict(A.Resize(80, 120))) == (80, 120)
    assert output_size(as_dict(*PIPELINES["longest"])) == (65, 70)
