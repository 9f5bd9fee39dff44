"""The evaluation pipeline as nodes of an ONNX graph: from uint8 RGB images of any size to what the network takes.

The resize is OpenCV's to the last bit. ONNX's own ``Resize`` differs from it by one level in an eighth of the values,
since OpenCV interpolates uint8 in fixed point, and it converts all pixels to float first. Here the four neighbors of
each output pixel are gathered and weighted in integers, so that a photograph of 12 megapixels costs no more than a
small one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from onnx import NodeProto, TensorProto, helper, numpy_helper

from fish_lightning.errors import UserError

#: Fixed point of OpenCV's linear resize (imgproc/src/resize.cpp): bits of a weight, and what it shifts by on the way.
WEIGHT, FIRST_SHIFT, SECOND_SHIFT = 2**11, 2**4, 2**16
#: Transforms that need no nodes; ``ToTensorV2`` is the last.
_STRUCTURE = ("Compose", "Sequential", "NoOp", "ToTensorV2")


class Nodes:
    """Nodes and constants of a graph under construction.

    Args:
        prefix: prefix of all names.

    Attributes:
        nodes: nodes in the order of computation.
        constants: initializers.
    """

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []

    def add(self, operator: str, *inputs: str | npt.ArrayLike, output: str = "", **attributes: Any) -> str:
        """Add a node and return the name of its output.

        Args:
            operator: name of the ONNX operator.
            inputs: names of tensors, and constants, whose types are those of NumPy: int64 for int, float64 for float.
            output: name of the output; a new one if none is given.
            attributes: attributes of the operator.
        """
        names = [value if isinstance(value, str) else self._constant(value) for value in inputs]
        output = output or f"{self.prefix}/{operator}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, names, [output], name=output, **attributes))
        return output

    def add_pair(self, operator: str, *inputs: str | npt.ArrayLike, **attributes: Any) -> tuple[str, str]:
        """Add a node with two outputs and return their names."""
        first = self.add(operator, *inputs, **attributes)
        self.nodes[-1].output.append(f"{first}/second")
        return first, f"{first}/second"

    def _constant(self, value: npt.ArrayLike) -> str:
        name = f"{self.prefix}/constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name


@dataclass(frozen=True)
class _Images:
    """Images (N, H, W, 3) within the graph, and what is known of their size when the graph is built.

    Attributes:
        name: name of the tensor.
        size: height and width, where they are known.
        bounds: upper bounds of height and width, where they are known.
    """

    name: str
    size: tuple[int | None, int | None] = (None, None)
    bounds: tuple[int | None, int | None] = (None, None)


def add_preprocessing(nodes: Nodes, images: str, pixels: str, transform: Mapping[str, Any]) -> tuple[int, int]:
    """Add an evaluation pipeline.

    Args:
        nodes: nodes of the graph, to which those of the pipeline are added.
        images: name of the input, (N, H, W, 3) uint8 RGB.
        pixels: name of the result, (N, 3, height, width) uint8.
        transform: ``albumentations.to_dict`` of the pipeline.

    Returns:
        Height and width of the result.

    Raises:
        UserError: the graph cannot compute a transform, which the message names, or images of different sizes are left.
    """
    made = _Images(images)
    for step in _steps(transform["transform"]):
        made = _ADD[step["__class_fullname__"]](nodes, made, step)
    height, width = made.size
    if height is None or width is None:
        raise UserError(
            "transforms.eval leaves images of different sizes, and the graph requires one\n"
            "add a Resize, a CenterCrop, or a PadIfNeeded to the size of LongestMaxSize"
        )
    # Fails where a crop is larger than its image, as albumentations does; 0: as many images as before.
    fixed = nodes.add("Reshape", made.name, [0, height, width, 3])
    nodes.add("Transpose", fixed, output=pixels, perm=[0, 3, 1, 2])
    return height, width


def _steps(node: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the transforms that become nodes, in order.

    Raises:
        UserError: the graph cannot compute a transform, which the message names.
    """
    name = node["__class_fullname__"]
    if float(node.get("p", 1)) != 1 and name != "NoOp":
        raise _refused(f"{name} with p={node['p']}", "p=1")
    if name in _ADD:
        return [node]
    if name not in _STRUCTURE:
        raise _refused(name, f"{', '.join(_ADD)} and NoOp")
    return [step for child in node.get("transforms", ()) for step in _steps(child)]


def _refused(what: str, expected: str) -> UserError:
    return UserError(f"transforms.eval: {what} cannot be computed in the graph\nexpected {expected}")


def _require_linear(step: Mapping[str, Any]) -> None:
    name, given = step["__class_fullname__"], step.get("interpolation", cv2.INTER_LINEAR)
    if step.get("area_for_downscale") is not None:
        raise _refused(f"{name} with area_for_downscale", "area_for_downscale=null")
    if given != cv2.INTER_LINEAR:
        raise _refused(f"{name} with interpolation={given}", f"interpolation={cv2.INTER_LINEAR} (linear)")


def _add_resize(nodes: Nodes, images: _Images, step: Mapping[str, Any]) -> _Images:
    _require_linear(step)
    size = int(step["height"]), int(step["width"])
    return _Images(_resized(nodes, images.name, size), size, size)


def _add_max_size(nodes: Nodes, images: _Images, step: Mapping[str, Any]) -> _Images:
    """Scale the smallest or the longest side to a size; Python's rounding of the other is ONNX's, half to even."""
    name, most = step["__class_fullname__"], step.get("max_size")
    _require_linear(step)
    if not isinstance(most, int):
        raise _refused(f"{name} without one max_size", "max_size=N")
    sides = nodes.add("Cast", _size(nodes, images.name), to=TensorProto.DOUBLE)
    chosen = nodes.add("ReduceMin" if name == "SmallestMaxSize" else "ReduceMax", sides, keepdims=0)
    scaled = nodes.add("Round", nodes.add("Mul", sides, nodes.add("Div", float(most), chosen)))
    size = nodes.add("Cast", nodes.add("Max", scaled, 1.0), to=TensorProto.INT64)
    bound = most if name == "LongestMaxSize" else None
    return _Images(_resized(nodes, images.name, _lengths(nodes, size)), bounds=(bound, bound))


def _add_center_crop(nodes: Nodes, images: _Images, step: Mapping[str, Any]) -> _Images:
    if step.get("pad_if_needed"):
        raise _refused("CenterCrop with pad_if_needed", "PadIfNeeded before it")
    size = int(step["height"]), int(step["width"])
    left = nodes.add("Max", nodes.add("Sub", _size(nodes, images.name), size), 0)
    # A crop larger than its image ends outside: the Reshape after it fails.
    start = nodes.add("Div", left, 2)
    return _Images(nodes.add("Slice", images.name, start, nodes.add("Add", start, size), [1, 2]), size, size)


def _add_pad(nodes: Nodes, images: _Images, step: Mapping[str, Any]) -> _Images:
    least: list[Any] = [step.get("min_height"), step.get("min_width")]
    fill = step.get("fill", 0)
    values = {float(value) for value in (fill if isinstance(fill, list | tuple) else [fill])}
    if None in least or step.get("position", "center") != "center" or len(values) != 1 or step.get("border_mode", 0):
        raise _refused("PadIfNeeded", "min_height, min_width, position=center, border_mode=0, one fill")
    missing = nodes.add("Max", nodes.add("Sub", least, _size(nodes, images.name)), 0)
    before = nodes.add("Div", missing, 2)
    pads = nodes.add("Concat", before, nodes.add("Sub", missing, before), axis=0)
    height, width = (
        minimum if bound is not None and bound <= minimum else known
        for minimum, known, bound in zip(least, images.size, images.bounds, strict=True)
    )
    padded = nodes.add("Pad", images.name, pads, np.uint8(values.pop()), [1, 2])
    return _Images(padded, (height, width), (height, width))


#: Transforms that become nodes.
_ADD = {
    "Resize": _add_resize,
    "SmallestMaxSize": _add_max_size,
    "LongestMaxSize": _add_max_size,
    "CenterCrop": _add_center_crop,
    "PadIfNeeded": _add_pad,
}


def _size(nodes: Nodes, images: str) -> str:
    """Return the height and width of images (N, H, W, 3), as an int64 vector."""
    return nodes.add("Shape", images, start=1, end=3)


def _lengths(nodes: Nodes, size: str) -> list[str]:
    """Return height and width as scalars, from a vector of both."""
    return [nodes.add("Gather", size, axis) for axis in (0, 1)]


def _resized(nodes: Nodes, images: str, targets: Sequence[str | int]) -> str:
    """Add the linear ``cv2.resize`` of images (N, H, W, 3) uint8 to a height and a width."""
    (height, width), (rows, columns) = _lengths(nodes, _size(nodes, images)), targets
    (top, bottom), of_rows = _neighbors(nodes, height, rows, (1, 1, 1), keep_outside=True)
    # One weight for each color: ONNX Runtime multiplies rows of equal length much faster than it repeats a value.
    (left, right), of_columns = _neighbors(nodes, width, columns, (1, 3), keep_outside=False)
    both = nodes.add("Gather", images, nodes.add("Concat", top, bottom, axis=0), axis=1)
    sides = _weighted(nodes, [nodes.add("Gather", both, at, axis=2) for at in (left, right)], of_columns)
    across = nodes.add("Div", nodes.add("Add", *sides), np.int32(FIRST_SHIFT))
    rows_of_both = nodes.add_pair("Split", across, axis=1, num_outputs=2)
    down = [nodes.add("Div", row, np.int32(SECOND_SHIFT)) for row in _weighted(nodes, rows_of_both, of_rows)]
    rounded = nodes.add("Add", nodes.add("Add", *down), np.int32(2))
    return nodes.add("Cast", nodes.add("Div", rounded, np.int32(4)), to=TensorProto.UINT8)


def _weighted(nodes: Nodes, values: Sequence[str], weights: Sequence[str]) -> list[str]:
    """Return values times weights, in int32."""
    return [
        nodes.add("Mul", nodes.add("Cast", value, to=TensorProto.INT32), weight)
        for value, weight in zip(values, weights, strict=True)
    ]


def _neighbors(
    nodes: Nodes, source: str, target: str | int, shape: tuple[int, ...], keep_outside: bool
) -> tuple[list[str], list[str]]:
    """Return the two neighbors of each position of an axis, and their weights in fixed point.

    Args:
        nodes: nodes of the graph, to which these are added.
        source: length of the axis.
        target: length of the axis after the resize.
        shape: shape that the weights are broadcast with, which repeats them along the axes that follow.
        keep_outside: whether positions outside the image keep their weights; both neighbors are the same there.
            OpenCV does so for rows and not for columns, and the two round differently.
    """
    there, here = (nodes.add("Cast", length, to=TensorProto.DOUBLE) for length in (target, source))
    scale = nodes.add("Div", 1.0, nodes.add("Div", there, here))  # as OpenCV computes it
    positions = nodes.add("Cast", nodes.add("Range", 0, target, 1), to=TensorProto.DOUBLE)
    center = nodes.add("Sub", nodes.add("Mul", nodes.add("Add", positions, 0.5), scale), 0.5)
    single = nodes.add("Cast", center, to=TensorProto.FLOAT)
    floor = nodes.add("Floor", single)
    first, last = nodes.add("Cast", floor, to=TensorProto.INT64), nodes.add("Sub", source, 1)
    indices = [nodes.add("Min", nodes.add("Max", at, 0), last) for at in (first, nodes.add("Add", first, 1))]
    rest = nodes.add("Sub", single, floor)
    if not keep_outside:
        rest = nodes.add("Where", nodes.add("Equal", *indices), np.float32(0), rest)
    weights = []
    for part in (nodes.add("Sub", np.float32(1), rest), rest):
        scaled = nodes.add("Round", nodes.add("Mul", part, np.float32(WEIGHT)))
        whole = nodes.add("Cast", scaled, to=TensorProto.INT32)
        column = nodes.add("Reshape", whole, [-1] + [1] * (len(shape) - 1))
        weights.append(nodes.add("Mul", column, np.ones(shape, np.int32)))
    return indices, weights
