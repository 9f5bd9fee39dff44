"""The graph of an export computes what torch and ``fish_lightning.evaluation`` compute."""

import albumentations as A
import numpy as np
import pytest
import torch

pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
import onnx

from fish_lightning.evaluation.arrays import softmax
from fish_lightning.evaluation.stored_calibration import unknown_score
from fish_lightning.evaluation.unknowns import IMAGE_SCORES, image_scores
from fish_lightning.exporting.graph import assembled, network_graph
from fish_lightning.exporting.precision import eight_bits, half_precision
from fish_lightning.models.classifier import FishClassifier
from fish_lightning.models.exported import FEATURES, LOGITS, PIXELS, Session, parts

SIZE = (48, 40)
PIPELINE = A.Compose([A.Resize(*SIZE), A.ToTensorV2()])
OUTPUTS = ("probabilities", "logits", "features", "unknown_score")


def classifier(name, tta=None):
    torch.manual_seed(0)
    norm = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.2]}
    model = FishClassifier(["a", "b", "c"], name, eval_transform=A.to_dict(PIPELINE), **norm)
    model.tta = tta
    return model.eval()


@pytest.fixture(scope="module")
def images():
    """Seven images, (7, 90, 71, 3)."""
    return np.random.default_rng(0).integers(0, 256, (7, 90, 71, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def network():
    """The graph of a small network."""
    return network_graph(classifier("squeezenet1_1"), *SIZE)


def expected(model, images):
    pixels = torch.stack([PIPELINE(image=image)["image"] for image in images])
    with torch.inference_mode():
        return [part.numpy() for part in model.logits_and_features(pixels)]


def whole(network, calibration):
    graph = assembled(network, A.to_dict(PIPELINE), calibration, {"classes": '["a"]'})
    return graph.SerializeToString()


VIEWS = [("shufflenet_v2_x0_5", None), ("squeezenet1_1", "turns"), ("timm/test_convnext", "flips")]


@pytest.mark.parametrize(("name", "tta"), VIEWS)
def test_logits_and_features_are_those_of_torch_for_any_number_of_images(images, name, tta):
    model = classifier(name, tta)
    session = Session(whole(network_graph(model, *SIZE), {}), OUTPUTS)
    logits, features = expected(model, images)
    for part in (slice(0, 1), slice(0, 3), slice(0, 7)):
        found = session(images[part])
        assert np.allclose(found[1], logits[part], atol=1e-5) and np.allclose(found[2], features[part], atol=1e-5)
        assert found[0] == pytest.approx(softmax(found[1]), abs=1e-6)


@pytest.mark.parametrize("score", IMAGE_SCORES)
def test_temperature_and_scores_are_those_of_evaluation(images, network, score):
    calibration = {"temperature": 0.25, "unknown": {"score": score, "threshold": 1.0}}
    probabilities, logits, features, unknown = Session(whole(network, calibration), OUTPUTS)(images)
    assert probabilities == pytest.approx(softmax(logits.astype(np.float64) / 0.25), abs=1e-6)
    assert unknown == pytest.approx(image_scores(logits, features)[score], rel=1e-5)


@pytest.mark.parametrize("photographs", [3, 40])
def test_nearest_neighbors_in_the_graph_are_those_of_evaluation(images, network, photographs):
    (_, _, features, _) = Session(whole(network, {}), OUTPUTS)(images)
    training = np.random.default_rng(1).normal(
        features.mean(0), features.std(0) + 0.1, (photographs, features.shape[1])
    )
    detector = {"score": "knn", "threshold": 0.5, "features": training.astype(np.float16)}
    graph = whole(network, {"temperature": None, "unknown": detector})
    _, logits, features, unknown = Session(graph, OUTPUTS)(images)
    assert unknown == pytest.approx(unknown_score(detector, logits, features), abs=1e-5) and np.ptp(unknown) > 1e-4


def test_scores_of_large_logits_do_not_overflow(images, network):
    large = onnx.ModelProto()
    large.CopyFrom(network)
    (last,) = (node for node in large.graph.node if LOGITS in node.output)
    last.output[0] = "small"
    factor = onnx.numpy_helper.from_array(np.array(1e5, np.float32), "factor")
    large.graph.initializer.append(factor)
    large.graph.node.append(onnx.helper.make_node("Mul", ["small", "factor"], [LOGITS], name="large"))
    probabilities, logits, _, energy = Session(whole(large, {}), OUTPUTS)(images)
    assert np.abs(logits).max() > 1000
    assert np.isfinite(probabilities).all() and energy == pytest.approx(logits.max(1), rel=1e-3)


def test_the_two_parts_of_a_graph_compute_the_whole_to_the_last_bit(images, network):
    graph = whole(network, {})
    before, after = parts(graph)
    (pixels,) = Session(before, [PIXELS])(images)
    assert np.array_equal(pixels, [PIPELINE(image=image)["image"] for image in images])
    found = Session(after, [LOGITS, FEATURES])(pixels)
    assert all(map(np.array_equal, found, Session(graph, [LOGITS, FEATURES])(images)))


def test_fewer_bits_make_smaller_files_with_nearly_the_same_answers(images, network):
    exact, (logits, _) = whole(network, {}), expected(classifier("squeezenet1_1"), images)
    pixels = np.stack([PIPELINE(image=image)["image"] for image in images])
    quantized = eight_bits(network, [pixels])
    for small, share, apart in ((half_precision(network), 0.6, 1e-2), (quantized, 0.35, 0.2)):
        graph = whole(small, {})
        found = Session(graph, OUTPUTS)(images)
        assert len(graph) < share * len(exact)
        assert [part.dtype for part in found] == [np.float32] * 4
        assert 0 < np.abs(found[1] - logits).max() < apart * np.abs(logits).max()
    stored = [part for part in quantized.graph.initializer if part.data_type == onnx.TensorProto.INT8 and part.dims]
    weights = [onnx.numpy_helper.to_array(part).astype(int) for part in stored if len(part.dims) == 4]
    # 7 bits: sums of two products cannot saturate on CPUs without VNNI
    assert len(weights) > 20 and max(np.abs(part).max() for part in weights) <= 64
