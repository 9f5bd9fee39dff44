"""Pipelines allowed in a checkpoint: restoring one instantiates transforms by name, so none may be harmful."""

import re
from collections.abc import Iterator
from typing import Any

#: albumentations transforms for evaluation; none reads a file or contains a function.
ALLOWED_TRANSFORMS = {
    *("Compose", "Sequential", "NoOp", "Resize", "LongestMaxSize", "SmallestMaxSize", "CenterCrop", "Crop"),
    *("CropAndPad", "Pad", "PadIfNeeded", "Transpose", "HorizontalFlip", "VerticalFlip", "ToGray", "ToRGB", "ToFloat"),
    *("FromFloat", "Normalize", "Equalize", "AutoContrast", "CLAHE", "InvertImg", "ToTensorV2"),
}
#: Arguments that decide how large an image becomes, and the most that they may be, in pixels.
_SIZES, MAX_SIZE = re.compile(r"height|width|size|px|[xy]_m"), 10_000


def pipeline_fault(transform: Any) -> str | None:
    """Return what is wrong with a pipeline, None if nothing is.

    It contains transforms of ``ALLOWED_TRANSFORMS`` only, ends in ``ToTensorV2`` and makes no image larger than
    ``MAX_SIZE``.

    Args:
        transform: value that should be ``albumentations.to_dict`` of a pipeline.
    """
    try:
        nodes = list(_nodes(transform["transform"]))
        names = [str(node["__class_fullname__"]) for node in nodes]
        sizes = [value for node in nodes for key, value in node.items() if _SIZES.search(key)]
        composed = isinstance(transform["transform"]["transforms"], list)
    except (LookupError, TypeError, AttributeError, RecursionError):
        return "not a pipeline"
    if refused := sorted({*names} - ALLOWED_TRANSFORMS):
        return (
            f"{', '.join(refused)} cannot be stored in a checkpoint\nallowed: {', '.join(sorted(ALLOWED_TRANSFORMS))}"
        )
    if not composed or names[-1] != "ToTensorV2":
        return "the last transform is not ToTensorV2"
    if any(abs(size) > MAX_SIZE for size in _numbers(sizes)):
        return f"a size above {MAX_SIZE:,} pixels"
    return None


def _nodes(node: Any) -> Iterator[dict[str, Any]]:
    """Yield a transform and those in it, in order."""
    yield node
    for child in node.get("transforms", ()):
        yield from _nodes(child)


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, int | float):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _numbers(part)
