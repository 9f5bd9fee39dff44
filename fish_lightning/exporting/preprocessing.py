"""The evaluation pipeline as nodes of an ONNX graph: from uint8 RGB images of any size to what the network takes.

The resize is OpenCV's to the last bit. ONNX's own ``Resize`` differs from it by one level in an eighth of the values,
since OpenCV interpolates uint8 in fixed point, and it converts all pixels to float first. Here the four neighbors of
each output pixel are gathered and weighted in integers, so that a photograph of 12 megapixels costs no more than a
small one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from onnx import NodeProto, TensorProto, helper, numpy_helper

from fish_lightning.errors import UserError

#: Fixed point of OpenCV's linear resize (imgproc/src/resize.cpp): bits of a weight, and what it shifts by on the way.
WEIGHT, FIRST_SHIFT, SECOND_SHIFT = 2**11, 2**4, 2**16
#: Transforms that become nodes; ``Compose``, ``Sequential`` and ``NoOp`` need none, ``ToTensorV2`` is the last.
IN_GRAPH = ("Resize", "SmallestMaxSize", "LongestMaxSize", "CenterCrop", "PadIfNeeded")
_STRUCTURE = ("Compose", "Sequential", "NoOp", "ToTensorV2")


class Nodes:
    """Nodes and constants of a graph under construction.

    Args:
        prefix: of all names.

    Attributes:
        nodes: in the order of computation.
        constants: initializers.
    """

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []

    def add(self, operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Add a node and return the name of its output, a new one if none is given."""
        output = output or f"{self.prefix}/{operator}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [output], name=output, **attributes))
        return output

    def constant(self, value: npt.ArrayLike, dtype: npt.DTypeLike = np.int64) -> str:
        """Add a constant and return its name."""
        name = f"{self.prefix}/constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.array(value, dtype), name))
        return name


@dataclass(frozen=True)
class _Images:
    """Images (N, H, W, 3) within the graph, and what is known of their size when the graph is built.

    Attributes:
        name: of the tensor.
        size: (height, width) where they are known.
        bounds: (height, width) that they do not exceed, where that is known.
    """

    name: str
    size: tuple[int | None, int | None] = (None, None)
    bounds: tuple[int | None, int | None] = (None, None)


def add_preprocessing(nodes: Nodes, images: str, pixels: str, transform: Mapping[str, Any]) -> tuple[int, int]:
    """Add an evaluation pipeline.

    Args:
        nodes: of the graph.
        images: name of the input, (N, H, W, 3) uint8 RGB.
        pixels: name of the result, (N, 3, height, width) uint8.
        transform: ``albumentations.to_dict`` of the pipeline.

    Returns:
        Height and width of the result.

    Raises:
        UserError: a transform that the graph cannot compute, by name, or one that leaves images of different sizes.
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
    fixed = nodes.add("Reshape", made.name, nodes.constant([0, height, width, 3]))
    nodes.add("Transpose", fixed, output=pixels, perm=[0, 3, 1, 2])
    return height, width


def output_size(transform: Mapping[str, Any]) -> tuple[int, int]:
    """Return height and width that :func:`add_preprocessing` would return.

    Raises:
        UserError: as there.
    """
    return add_preprocessing(Nodes(""), "", "", transform)


def _steps(node: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the transforms that become nodes, in order.

    Raises:
        UserError: there are others, by name.
    """
    name = node["__class_fullname__"]
    if float(node.get("p", 1)) != 1 and name != "NoOp":
        raise _refused(f"{name} with p={node['p']}", "p=1")
    if name in IN_GRAPH:
        return [node]
    if name not in _STRUCTURE:
        raise _refused(name, f"{', '.join(IN_GRAPH)} and NoOp")
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
    targets = [nodes.constant(length) for length in size]
    return _Images(_resized(nodes, images.name, targets), size, size)


def _add_max_size(nodes: Nodes, images: _Images, step: Mapping[str, Any]) -> _Images:
    """Scale the smallest or the longest side to a size; Python's rounding of the other is ONNX's, half to even."""
    name, most = step["__class_fullname__"], step.get("max_size")
    _require_linear(step)
    if not isinstance(most, int):
        raise _refused(f"{name} without one max_size", "max_size=N")
    sides = [nodes.add("Cast", length, to=TensorProto.DOUBLE) for length in _lengths(nodes, images.name)]
    chosen = nodes.add("Min" if name == "SmallestMaxSize" else "Max", *sides)
    scale = nodes.add("Div", nodes.constant(most, np.float64), chosen)
    targets = []
    for side in sides:
        scaled = nodes.add("Round", nodes.add("Mul", side, scale))
        at_least_one = nodes.add("Max", scaled, nodes.constant(1, np.float64))
        targets.append(nodes.add("Cast", at_least_one, to=TensorProto.INT64))
    bound = most if name == "LongestMaxSize" else None
    resized = _resized(nodes, images.name, targets)
    return _Images(resized, bounds=(bound, bound))


def _add_center_crop(nodes: Nodes, images: _Images, step: Mapping[str, Any]) -> _Images:
    if step.get("pad_if_needed"):
        raise _refused("CenterCrop with pad_if_needed", "PadIfNeeded before it")
    size = int(step["height"]), int(step["width"])
    starts, ends = [], []
    for length, kept in zip(_lengths(nodes, images.name), size, strict=True):
        left = nodes.add("Sub", length, nodes.constant(kept))
        # A crop larger than its image starts outside: the Reshape after it fails.
        start = nodes.add("Div", nodes.add("Max", left, nodes.constant(0)), nodes.constant(2))
        starts.append(start)
        ends.append(nodes.add("Add", start, nodes.constant(kept)))
    bounds = [_joined(nodes, part) for part in (starts, ends)]
    return _Images(nodes.add("Slice", images.name, *bounds, nodes.constant([1, 2])), size, size)


def _add_pad(nodes: Nodes, images: _Images, step: Mapping[str, Any]) -> _Images:
    least: list[Any] = [step.get("min_height"), step.get("min_width")]
    fill = step.get("fill", 0)
    values = {float(value) for value in (fill if isinstance(fill, list | tuple) else [fill])}
    if None in least or step.get("position", "center") != "center" or len(values) != 1 or step.get("border_mode", 0):
        raise _refused("PadIfNeeded", "min_height, min_width, position=center, border_mode=0, one fill")
    before, after, size = [], [], []
    for length, minimum, known, bound in zip(
        _lengths(nodes, images.name), least, images.size, images.bounds, strict=True
    ):
        missing = nodes.add("Max", nodes.add("Sub", nodes.constant(minimum), length), nodes.constant(0))
        before.append(nodes.add("Div", missing, nodes.constant(2)))
        after.append(nodes.add("Sub", missing, before[-1]))
        most = known if known is not None else bound
        size.append(minimum if most is not None and most <= minimum else known)
    pads = _joined(nodes, [*before, *after])
    padded = nodes.add("Pad", images.name, pads, nodes.constant(values.pop(), np.uint8), nodes.constant([1, 2]))
    return replace(images, name=padded, size=(size[0], size[1]), bounds=(size[0], size[1]))


_ADD = {
    "Resize": _add_resize,
    "SmallestMaxSize": _add_max_size,
    "LongestMaxSize": _add_max_size,
    "CenterCrop": _add_center_crop,
    "PadIfNeeded": _add_pad,
}


def _lengths(nodes: Nodes, images: str) -> list[str]:
    """Return height and width of images (N, H, W, 3), as scalars of int64."""
    shape = nodes.add("Shape", images)
    return [nodes.add("Gather", shape, nodes.constant(axis)) for axis in (1, 2)]


def _joined(nodes: Nodes, scalars: Sequence[str]) -> str:
    """Return scalars as one vector."""
    axis = nodes.constant([0])
    return nodes.add("Concat", *(nodes.add("Unsqueeze", scalar, axis) for scalar in scalars), axis=0)


def _resized(nodes: Nodes, images: str, targets: Sequence[str]) -> str:
    """Add the linear ``cv2.resize`` of images (N, H, W, 3) uint8 to a height and a width, scalars of int64."""
    (height, width), (rows, columns) = _lengths(nodes, images), targets
    (top, bottom), of_rows = _neighbors(nodes, height, rows, np.ones((1, 1, 1)), keep_outside=True)
    # One weight for each color: ONNX Runtime multiplies rows of equal length much faster than it repeats a value.
    (left, right), of_columns = _neighbors(nodes, width, columns, np.ones((1, 3)), keep_outside=False)
    both = nodes.add("Gather", images, nodes.add("Concat", top, bottom, axis=0), axis=1)
    across = _weighted(nodes, [nodes.add("Gather", both, at, axis=2) for at in (left, right)], of_columns)
    shifted = nodes.add("Div", across, nodes.constant(FIRST_SHIFT, np.int32))
    halves = [f"{shifted}/top", f"{shifted}/bottom"]
    nodes.nodes.append(helper.make_node("Split", [shifted], halves, axis=1, num_outputs=2))
    down = _weighted(nodes, halves, of_rows, nodes.constant(SECOND_SHIFT, np.int32))
    rounded = nodes.add("Add", down, nodes.constant(2, np.int32))
    return nodes.add("Cast", nodes.add("Div", rounded, nodes.constant(4, np.int32)), to=TensorProto.UINT8)


def _weighted(nodes: Nodes, values: Sequence[str], weights: Sequence[str], shift: str | None = None) -> str:
    """Return the sum of values times weights, in int32, each product divided by ``shift``."""
    products = [
        nodes.add("Mul", nodes.add("Cast", value, to=TensorProto.INT32), weight)
        for value, weight in zip(values, weights, strict=True)
    ]
    return nodes.add("Add", *([nodes.add("Div", product, shift) for product in products] if shift else products))


def _neighbors(
    nodes: Nodes, source: str, target: str, like: npt.NDArray[Any], keep_outside: bool
) -> tuple[list[str], list[str]]:
    """Return the two neighbors of each position of an axis, and their weights in fixed point.

    Args:
        nodes: of the graph.
        source: length of the axis.
        target: its length after the resize.
        like: ones, by which the weights are repeated along the axes that follow.
        keep_outside: whether positions outside the image keep their weights; both neighbors are the same there.
            OpenCV does so for rows and not for columns, and the two round differently.
    """
    there, here = (nodes.add("Cast", length, to=TensorProto.DOUBLE) for length in (target, source))
    scale = nodes.add("Div", nodes.constant(1, np.float64), nodes.add("Div", there, here))  # as OpenCV computes it
    index = nodes.add("Range", nodes.constant(0), target, nodes.constant(1))
    positions = nodes.add("Cast", index, to=TensorProto.DOUBLE)
    half = nodes.constant(0.5, np.float64)
    center = nodes.add("Sub", nodes.add("Mul", nodes.add("Add", positions, half), scale), half)
    single = nodes.add("Cast", center, to=TensorProto.FLOAT)
    floor = nodes.add("Floor", single)
    rest = nodes.add("Sub", single, floor)
    first = nodes.add("Cast", floor, to=TensorProto.INT64)
    second = nodes.add("Add", first, nodes.constant(1))
    indices = [_clipped(nodes, index, source) for index in (first, second)]
    if not keep_outside:
        zero = nodes.constant(0, np.float32)
        rest = nodes.add("Where", nodes.add("Equal", *indices), zero, rest)
        outside = nodes.add("Less", first, nodes.constant(0))
        rest = nodes.add("Where", outside, zero, rest)
    weights = []
    for part in (nodes.add("Sub", nodes.constant(1, np.float32), rest), rest):
        scaled = nodes.add("Round", nodes.add("Mul", part, nodes.constant(WEIGHT, np.float32)))
        whole = nodes.add("Cast", scaled, to=TensorProto.INT32)
        column = nodes.add("Reshape", whole, nodes.constant([-1] + [1] * (like.ndim - 1)))
        weights.append(nodes.add("Mul", column, nodes.constant(like, np.int32)))
    return indices, weights


def _clipped(nodes: Nodes, indices: str, length: str) -> str:
    """Return indices moved into an axis."""
    last = nodes.add("Sub", length, nodes.constant(1))
    return nodes.add("Min", nodes.add("Max", indices, nodes.constant(0)), last)
