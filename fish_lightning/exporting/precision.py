"""The network of an export in fewer bits: half precision, or 8 bits by static quantization.

The tools of ONNX Runtime change the network that they are given, and so are given a copy.
"""

import tempfile
import warnings
from collections.abc import Iterable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto

from fish_lightning.models.exported import PIXELS

#: Computed in float32 in any case: normalization, which is no work.
NORMALIZATION = ("Cast", "Div", "Sub")


def half_precision(network: ModelProto) -> ModelProto:
    """Return a network with float16 weights and arithmetic; inputs and outputs keep their types.

    Args:
        network: network from :func:`fish_lightning.exporting.graph.network_graph`.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of weights below the smallest float16, which become that
        converted: ModelProto = convert_float_to_float16(
            deepcopy(network), keep_io_types=True, op_block_list=list(NORMALIZATION)
        )
    OnnxModel(converted).topological_sort()  # the converter appends its casts
    return converted


def eight_bits(network: ModelProto, batches: Iterable[npt.NDArray[np.uint8]]) -> ModelProto:
    """Return a network quantized by ONNX Runtime: QDQ, per channel, 8-bit activations and 7-bit weights.

    With 8-bit weights, CPUs without VNNI instructions saturate sums of two products, and answer differently from those
    that have them; with 7 bits none can (``reduce_range``). Ranges of activations are the smallest and largest values
    that occur.

    Args:
        network: network from :func:`fish_lightning.exporting.graph.network_graph`.
        batches: batches of training images, (N, 3, H, W) uint8 each.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    inputs = ({PIXELS: batch} for batch in batches)

    class CalibrationBatches(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, Any] | None:
            return next(inputs, None)

    with tempfile.TemporaryDirectory() as folder:
        prepared, quantized = Path(folder, "prepared.onnx"), Path(folder, "quantized.onnx")
        quant_pre_process(deepcopy(network), str(prepared), skip_symbolic_shape=True)  # folds batch normalization
        graph = onnx.load(prepared).graph
        quantize_static(
            str(prepared),
            str(quantized),
            CalibrationBatches(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=[node.name for node in graph.node if node.op_type in NORMALIZATION],
        )
        return onnx.load(quantized)
