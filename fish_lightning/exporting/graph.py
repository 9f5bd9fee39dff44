"""One ONNX graph from uint8 images to calibrated probabilities: preprocessing, network, answers.

The network is traced by the TorchScript-based exporter (``dynamo=False``). With a dynamic batch it exports every
torchvision backbone that was tried (ResNet, ShuffleNet, SqueezeNet, MobileNet, EfficientNet, RegNet, DenseNet,
Inception, ConvNeXt, ViT, Swin), in a second or two, needs no package besides ``onnx``, and traces
:meth:`~fish_lightning.models.classifier.FishClassifier.logits_and_features` as it is, hooks and views included. The
exporter based on ``torch.export`` gives the same logits and takes 8 to 40 seconds.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import torch
from onnx import ModelProto, TensorProto, helper
from torch import Tensor, nn

from fish_lightning.errors import UserError, first_line
from fish_lightning.evaluation.neighbors import SHORTEST, unit_length
from fish_lightning.evaluation.unknowns import IMAGE_SCORES, NEIGHBOR, SCORE
from fish_lightning.exporting.preprocessing import Nodes, add_preprocessing
from fish_lightning.files import byte_size
from fish_lightning.models.classifier import FishClassifier
from fish_lightning.models.exported import FEATURES, IMAGES, LOGITS, PIXELS, PROBABILITIES, UNKNOWN_SCORE

OPSET = 18  # the first whose Split and ReduceSum are as used here; ONNX Runtime 1.14 and later
#: Protocol Buffers, in which ONNX files are written, have no larger messages.
MOST_BYTES = 2**31 - 2**20


class _Network(nn.Module):
    """What is traced: pixels to logits and features, of all views of an image."""

    def __init__(self, model: FishClassifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (N, C) and features (N, D) of pixels (N, 3, H, W) uint8."""
        return self.model.logits_and_features(pixels)


def network_graph(model: FishClassifier, height: int, width: int) -> ModelProto:
    """Return the network as ONNX: ``pixels`` (N, 3, height, width) uint8 to ``logits`` and ``features``, float32.

    Args:
        model: model in evaluation mode; the views of its test-time augmentation become part of the graph.
        height: height in pixels of the images that the evaluation pipeline makes.
        width: width in pixels of the images that the evaluation pipeline makes.

    Raises:
        UserError: the network has no ONNX operators for what it computes, or is too large for an ONNX file.
    """
    setting = f"model.name={model.hparams['name']}"
    size = sum(part.numel() * 4 for part in model.network.parameters())
    if size > MOST_BYTES:
        raise UserError(f"{setting}: the weights ({byte_size(size)}) exceed the 2 GB that an ONNX file holds")
    example = torch.zeros(2, 3, height, width, dtype=torch.uint8)
    names = [PIXELS, LOGITS, FEATURES]
    try:
        with TemporaryDirectory() as folder, warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")  # of the tracer, and that this exporter is no longer the default
            torch.onnx.export(
                _Network(model).eval(),
                (example,),
                file := Path(folder, "network.onnx"),
                dynamo=False,
                opset_version=OPSET,
                input_names=names[:1],
                output_names=names[1:],
                dynamic_axes={name: {0: "N"} for name in names},
            )
            return onnx.load(file)
    except torch.onnx.errors.OnnxExporterError as error:
        raise UserError(f"{setting}: cannot be exported ({first_line(error)})") from None


def assembled(
    network: ModelProto, transform: Mapping[str, Any], calibration: Mapping[str, Any], metadata: Mapping[str, str]
) -> ModelProto:
    """Return the whole graph: ``images`` to ``probabilities``, ``logits``, ``features`` and ``unknown_score``.

    Args:
        network: network from :func:`network_graph`, possibly in another precision.
        transform: ``albumentations.to_dict`` of the evaluation pipeline.
        calibration: content of the run's ``calibration.json``; empty: nothing is calibrated.
        metadata: strings stored in the file.

    Raises:
        UserError: the graph cannot compute the pipeline.
    """
    before, after = Nodes("preprocessing"), Nodes("answers")
    height, width = add_preprocessing(before, IMAGES, PIXELS, transform)
    _add_answers(after, calibration)
    core = network.graph
    classes, features = (int(output.type.tensor_type.shape.dim[1].dim_value) for output in core.output)
    lengths = {PROBABILITIES: [classes], LOGITS: [classes], FEATURES: [features], UNKNOWN_SCORE: []}
    tensor = helper.make_tensor_value_info
    graph = helper.make_graph(
        [*before.nodes, *core.node, *after.nodes],
        "fish_lightning",
        [tensor(IMAGES, TensorProto.UINT8, ["N", "H", "W", 3])],
        [tensor(name, TensorProto.FLOAT, ["N", *length]) for name, length in lengths.items()],
        [*before.constants, *core.initializer, *after.constants],
        value_info=[tensor(PIXELS, TensorProto.UINT8, ["N", 3, height, width])],
    )
    used = {node.domain for node in graph.node}
    opsets = [opset for opset in network.opset_import if opset.domain in used]
    model = helper.make_model(
        graph, opset_imports=opsets, producer_name="fish_lightning", ir_version=network.ir_version
    )
    helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model)
    return model


def describe_unknown_score(calibration: Mapping[str, Any]) -> str:
    """Return the name of the score that detects images of none of the classes."""
    return str((calibration.get("unknown") or {}).get("score", IMAGE_SCORES[0]))


def _add_answers(nodes: Nodes, calibration: Mapping[str, Any]) -> None:
    """Add what follows from logits and features, as :mod:`fish_lightning.evaluation` computes it from arrays."""
    temperature, score = calibration.get("temperature"), describe_unknown_score(calibration)
    warm = LOGITS if temperature is None else nodes.add("Div", LOGITS, np.float32(temperature))
    nodes.add("Softmax", warm, output=PROBABILITIES, axis=1)
    if score == "energy":
        nodes.add("ReduceLogSumExp", LOGITS, [1], output=UNKNOWN_SCORE, keepdims=0)
    elif score == SCORE:  # the cosine to the k-th nearest training photograph, as ``neighbor_score`` computes it
        training = unit_length(calibration["unknown"]["features"])  # (M, D)
        length = nodes.add("Max", nodes.add("ReduceL2", FEATURES, [1], keepdims=1), np.float32(SHORTEST))
        cosines = nodes.add("MatMul", nodes.add("Div", FEATURES, length), training.T.astype(np.float32))
        k = min(NEIGHBOR, len(training))
        nearest, _ = nodes.add_pair("TopK", cosines, [k], axis=1)
        nodes.add("Gather", nearest, k - 1, output=UNKNOWN_SCORE, axis=1)
    elif score == "feature_norm":
        nodes.add("ReduceL2", FEATURES, [1], output=UNKNOWN_SCORE, keepdims=0)
    else:
        of = LOGITS if score == "max_logit" else nodes.add("Softmax", LOGITS, axis=1)
        nodes.add("ReduceMax", of, [1], output=UNKNOWN_SCORE, keepdims=0)
