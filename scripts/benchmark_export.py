"""Measure exports against torch on this CPU: ratios of two sides timed alternately, from the same images.

    python scripts/benchmark_export.py [--model resnet34] [--height 160] [--width 240] [--rounds 9] [--threads 1]

The network has random weights, and the quantized one the ranges of random images: neither changes what is computed.
Sides of the network take pixels of its size; the last rows take images of 590x445 through preprocessing too.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmark import in_turns, machine, rate, row

import fish_lightning  # noqa: F401 - sets what torch and albumentations read when they are imported

# isort: split
import albumentations as A
import numpy as np
import torch

from fish_lightning.exporting.graph import assembled, network_graph
from fish_lightning.exporting.precision import eight_bits, half_precision
from fish_lightning.models.classifier import FishClassifier
from fish_lightning.models.exported import LOGITS, PROBABILITIES, Session

BATCHES = (32, 1)
ORIGINAL = (445, 590)  # height and width of the archive's images
SIDES = (
    ("ONNX Runtime fp32", "torch fp32"),
    ("ONNX Runtime fp16", "ONNX Runtime fp32"),
    ("ONNX Runtime int8", "ONNX Runtime fp32"),
    ("ONNX Runtime int8", "torch bf16"),
)


def torch_side(model: FishClassifier, pixels: torch.Tensor, bf16: bool) -> Callable[[], Any]:
    """Return a step of torch, channels-last."""

    def step() -> None:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            model(pixels)

    return step


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet34")
    for name, value in (("height", 160), ("width", 240), ("rounds", 9), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    pipeline = A.Compose([A.Resize(given.height, given.width), A.ToTensorV2()])
    random = np.random.default_rng(0)
    model = FishClassifier([*"abcdefghi"], given.model, eval_transform=A.to_dict(pipeline)).eval()
    network = network_graph(model, given.height, given.width)
    seen = random.integers(0, 256, (32, 3, given.height, given.width), dtype=np.uint8)
    graphs = {"fp32": network, "fp16": half_precision(network), "int8": eight_bits(network, [seen])}
    sessions = {name: Session(graph.SerializeToString(), [LOGITS]) for name, graph in graphs.items()}
    print(f"{machine()}, {given.threads} thread(s)\n{given.model}, {given.height}x{given.width} (h x w)\n")
    for batch in BATCHES:
        pixels = torch.from_numpy(seen[:batch])
        steps = {
            "torch fp32": torch_side(model, pixels, bf16=False),
            "torch bf16": torch_side(model, pixels, bf16=True),
            **{f"ONNX Runtime {name}": partial(session, seen[:batch]) for name, session in sessions.items()},
        }
        for ours, theirs in SIDES:
            _print(f"batch {batch}: {ours} against {theirs}", [steps[ours], steps[theirs]], batch, given.rounds)
    for batch in BATCHES:
        images = random.integers(0, 256, (batch, *ORIGINAL, 3), dtype=np.uint8)

        def by_checkpoint(images: Any = images) -> None:
            stacked = torch.stack([pipeline(image=image)["image"] for image in images])
            torch_side(model, stacked, bf16=False)()

        for name in ("fp32", "int8"):
            whole = assembled(graphs[name], A.to_dict(pipeline), {}, {}).SerializeToString()
            export = partial(Session(whole, [PROBABILITIES]), images)
            title = f"batch {batch}, from 590x445: export {name} against albumentations and torch fp32"
            _print(title, [export, by_checkpoint], batch, given.rounds)


def _print(name: str, steps: list[Callable[[], Any]], batch: int, rounds: int) -> None:
    for step in steps:
        step()
    repeats = max(1, 8 // batch)

    def timed(step: Callable[[], Any]) -> float:
        return rate(lambda: [step() for _ in range(repeats)], repeats * batch)

    line = row(name, in_turns(rounds, *(partial(timed, step) for step in steps)), "images/s")
    print(f"{line.name:<80} {line.ratio:6.3g}  {line.low:.3g} to {line.high:.3g}  {line.detail}", flush=True)


if __name__ == "__main__":
    main()
