"""What ``export`` prints: what was built, how it compares with the checkpoint, and where it is."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fish_lightning.exporting.folder import Export
from fish_lightning.files import byte_size, override, shown
from fish_lightning.names import printable


def export_table(folder: Path, export: Export) -> str:
    """Return the result of an export to ``folder`` for the terminal."""
    content, parity = export.content, export.parity
    size, odd = content["size"], parity["odd_sizes"]
    lines = [
        f"model   {content['name']}: {content['precision']}, {size['height']}x{size['width']} (h x w), "
        f"{len(content['classes'])} classes, {byte_size(len(export.graph))}",
        f"parity  {_differences(parity)}",
        f"        one by one, in batches of 3 and of 32, and at {odd['height']}x{odd['width']} pixels",
    ]
    if "int8" in parity:
        lines += [f"fp32    {_differences(parity['fp32'])}", *_eight_bits(parity["int8"])]
    lines.append(f"folder  {shown(folder)}")
    if parity["passed"]:
        lines.append(f"use     python -m fish_lightning.predict {override('ckpt', folder)} input=FOLDER")
    return "\n".join(lines)


def _differences(parity: Mapping[str, Any]) -> str:
    return (
        f"{parity['n']:,} images: largest difference in a probability {parity['max_abs_dp']:.2g}, "
        f"mean {parity['mean_abs_dp']:.2g}; {parity['flips']} flips, {parity['flips_beyond_margin']} beyond the margin"
    )


def _eight_bits(small: Mapping[str, Any]) -> list[str]:
    accuracy, megabytes = small["accuracy"], small["megabytes"]
    by_photograph = small["accuracy_ci95_photographs"]["int8"]
    low, high = by_photograph or small["accuracy_ci95"]["int8"]
    how = " clustered by photograph" if by_photograph else ""
    one, many = (small["ms_per_image"][size] for size in ("1", "32"))
    return [
        f"int8    {small['n']:,} images: accuracy {accuracy['int8']:.2%} (95% CI {low:.1%} to {high:.1%}{how}), "
        f"fp32 {accuracy['fp32']:.2%}; {small['flips']} flips",
        f"        fp32 is A, int8 is B: {small['compare']['sentence']}",
        f"        {megabytes['int8']:.1f} MB, fp32 {megabytes['fp32']:.1f}; ms per image {one['int8']:.1f} for one and "
        f"{many['int8']:.1f} in batches of 32, fp32 {one['fp32']:.1f} and {many['fp32']:.1f}",
    ]


def parity_error(parity: Mapping[str, Any], file: Path) -> str:
    """Return why an export was not written.

    Args:
        parity: content of ``parity.json`` of an export that has not passed.
        file: path of ``parity.json``.
    """
    exact = parity.get("fp32", parity)
    if exact["passed"]:
        why = parity["int8"]["compare"]["sentence"]
        return f"the quantized model is worse than the float32 one, and is not written\n{why}"
    path, apart = exact["worst"][0]
    return (
        f"the ONNX outputs differ from the checkpoint's; no model was written: {_differences(exact)}\n"
        f"largest for {printable(path)}: {apart:.2g}, export.tolerance={exact['tolerance']:g}; see {shown(file)}"
    )
