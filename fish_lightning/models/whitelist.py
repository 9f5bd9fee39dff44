"""Transforms allowed in a checkpoint: restoring one instantiates them by name, so none may be harmful."""

from collections.abc import Iterator
from typing import Any

from fish_lightning.errors import UserError

#: albumentations transforms for evaluation; none reads a file or contains a function.
ALLOWED_TRANSFORMS = {
    *("Compose", "Sequential", "NoOp", "Resize", "LongestMaxSize", "SmallestMaxSize", "CenterCrop", "Crop"),
    *("CropAndPad", "Pad", "PadIfNeeded", "Transpose", "HorizontalFlip", "VerticalFlip", "ToGray", "ToRGB", "ToFloat"),
    *("FromFloat", "Normalize", "Equalize", "AutoContrast", "CLAHE", "InvertImg", "ToTensorV2"),
}


def require_allowed(transform: dict[str, Any]) -> None:
    """Refuse an evaluation pipeline with a transform that is not allowed in a checkpoint.

    Args:
        transform: ``albumentations.to_dict`` of the pipeline, or empty.

    Raises:
        UserError: it contains a transform that is not in ``ALLOWED_TRANSFORMS``.
    """

    def names(node: dict[str, Any]) -> Iterator[str]:
        yield str(node["__class_fullname__"])
        for child in node.get("transforms", ()):
            yield from names(child)

    refused = sorted(set(names(transform["transform"])) - ALLOWED_TRANSFORMS) if transform else []
    if refused:
        raise UserError(
            f"transforms.eval: {', '.join(refused)} cannot be stored in a checkpoint\n"
            f"allowed: {', '.join(sorted(ALLOWED_TRANSFORMS))}"
        )
