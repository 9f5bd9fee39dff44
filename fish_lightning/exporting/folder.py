"""Write the folder of an export: a Triton and KServe model repository that also says what it contains."""

import hashlib
import json
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fish_lightning import __version__
from fish_lightning.data.catalog import Catalog
from fish_lightning.evaluation.stored_calibration import write_calibration
from fish_lightning.exporting.graph import OPSET, describe_unknown_score
from fish_lightning.exporting.model_card import model_card, weights_origin
from fish_lightning.exporting.triton import triton_config
from fish_lightning.files import atomic_write, read_summary, run_of, sha256_of
from fish_lightning.models.checkpoint import checkpoint_file, weights_digest
from fish_lightning.models.exported import (
    FEATURES,
    FORMAT,
    IMAGES,
    LOGITS,
    MODEL_FILE,
    PROBABILITIES,
    SPLIT_FILE,
    UNKNOWN_SCORE,
    model_file,
)
from fish_lightning.models.trained import TrainedModel

PARITY_FILE, CARD_FILE = "parity.json", "model_card.md"
#: Packages whose versions are recorded.
PACKAGES = ("torch", "torchvision", "onnx", "onnxruntime", "albumentations", "opencv-python-headless")


@dataclass(frozen=True)
class Export:
    """What is written.

    Attributes:
        trained: the checkpoint, opened.
        ckpt: where it is, as it was given.
        catalog: of the training run, where its images are now.
        name: of the model in the repository.
        precision: ``"fp32"``, ``"fp16"`` or ``"int8"``.
        height: of the images that the network sees.
        width: of the same.
    """

    trained: TrainedModel
    ckpt: str
    catalog: Catalog
    name: str
    precision: str
    height: int
    width: int


def repository_name(name: str | None, network: str) -> str:
    """Return the name of the model in the repository: the given one, or the network's, of letters, digits, - and _."""
    return name or re.sub(r"[^\w-]+", "_", network, flags=re.ASCII)


def metadata(export: Export) -> dict[str, str]:
    """Return the texts that the ONNX file carries: class names and rules, for those who have that file alone."""
    rules = description(export, "")
    kept = {key: rules[key] for key in ("classes", "input", "outputs", "rules")}
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in kept.items()}


def description(export: Export, sha256: str) -> dict[str, Any]:
    """Return the content of ``model.json``.

    Args:
        export: what is written.
        sha256: of the ONNX file.
    """
    trained, model = export.trained, export.trained.module
    calibration = trained.calibration
    selective, unknown = calibration.get("selective") or {}, calibration.get("unknown") or {}
    file = checkpoint_file(export.ckpt)
    return {
        "format": FORMAT,
        "name": export.name,
        "network": model.hparams["name"],
        "precision": export.precision,
        "sha256": sha256,
        "classes": list(model.class_names),
        "size": {"height": export.height, "width": export.width},
        "input": {
            "name": IMAGES,
            "type": "uint8",
            "shape": ["N", "H", "W", 3],
            "content": "RGB, upright (EXIF orientation applied), any height and width, not resized",
        },
        "outputs": {
            PROBABILITIES: "(N, classes) float32, softmax of logits / temperature",
            LOGITS: "(N, classes) float32",
            FEATURES: "(N, D) float32, input of the network's last layer",
            UNKNOWN_SCORE: f"(N,) float32, {describe_unknown_score(calibration)}, higher for images of the classes",
        },
        "temperature": calibration.get("temperature"),
        "rules": {
            "uncertain": {"rule": "max(softmax(logits)) < threshold", "threshold": selective.get("threshold")},
            "unknown": {"rule": f"{UNKNOWN_SCORE} < threshold", "threshold": unknown.get("threshold")},
            "order": "unknown (none of these) before uncertain; a threshold of null marks nothing",
        },
        "preprocessing": {
            "transform": model.hparams["eval_transform"],
            "mean": model.mean.flatten().tolist(),
            "std": model.std.flatten().tolist(),
        },
        "tta": model.tta,
        "checkpoint": {
            "file": file.name,
            "sha256": sha256_of(file),
            "weights": weights_digest(model),
            "precision": trained.precision,
        },
        "data": {
            "root": str(export.catalog.root),
            **{key: trained.data[key] for key in ("split", "seed", "batch_size")},
        },
        "weights": weights_origin(read_summary(run_of(checkpoint_file(export.ckpt)))),
        "versions": {
            "fish_lightning": __version__,
            "python": platform.python_version(),
            "onnx_opset": OPSET,
            **{package: version(package) for package in PACKAGES},
        },
    }


def write_parity(folder: Path, parity: Mapping[str, Any]) -> None:
    """Write ``parity.json``."""
    _write(folder / PARITY_FILE, json.dumps(parity, indent=2) + "\n")


def write_export(folder: Path, export: Export, graph: bytes, parity: Mapping[str, Any]) -> None:
    """Write all files; ``model.json`` comes last, and makes the folder an export.

    Args:
        folder: of the export.
        export: what is written.
        graph: the serialized ONNX model.
        parity: content of ``parity.json``.
    """
    content = description(export, hashlib.sha256(graph).hexdigest())
    model = model_file(folder, export.name)
    with atomic_write(model) as temporary:
        temporary.write_bytes(graph)
    _write(model.parents[1] / "config.pbtxt", triton_config(content))
    export.catalog.write_csv(folder / SPLIT_FILE)
    if export.trained.calibration:
        write_calibration(folder, export.trained.calibration)
    write_parity(folder, parity)
    summary = read_summary(run_of(checkpoint_file(export.ckpt)))
    _write(folder / CARD_FILE, model_card(content, parity, summary, export.catalog))
    _write(folder / MODEL_FILE, json.dumps(content, indent=2) + "\n")


def _write(file: Path, text: str) -> None:
    with atomic_write(file) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
