"""Write the folder of an export: a Triton and KServe model repository that also says what it contains."""

import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from fish_lightning import __version__
from fish_lightning.data.catalog import Catalog
from fish_lightning.evaluation.stored_calibration import write_calibration
from fish_lightning.exporting.graph import OPSET, describe_unknown_score
from fish_lightning.exporting.model_card import model_card, rendered, weights_origin
from fish_lightning.files import atomic_write, sha256_of, write_json, write_text
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
        content: content of ``model.json``.
        graph: the serialized ONNX model.
        parity: content of ``parity.json``.
        catalog: catalog of the training run, with the current folder of its images.
        calibration: content of the run's ``calibration.json``; empty: nothing is calibrated.
        summary: the run's ``summary.json``; empty if it is not there.
    """

    content: dict[str, Any]
    graph: bytes
    parity: dict[str, Any]
    catalog: Catalog
    calibration: Mapping[str, Any]
    summary: dict[str, Any]


def description(
    trained: TrainedModel, cfg: DictConfig, catalog: Catalog, height: int, width: int, summary: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the content of ``model.json``, with an empty ``sha256``.

    Args:
        trained: the checkpoint.
        cfg: the composed ``conf/export.yaml``.
        catalog: catalog of the training run, with the current folder of its images.
        height: height in pixels of the images that the network sees.
        width: width in pixels of the images that the network sees.
        summary: the run's ``summary.json``; empty if it is not there.
    """
    model, calibration = trained.module, trained.calibration
    selective, unknown = calibration.get("selective") or {}, calibration.get("unknown") or {}
    file, network = checkpoint_file(cfg.ckpt), model.hparams["name"]
    name = cfg.name or re.sub(r"[^\w-]+", "_", network, flags=re.ASCII)
    precision = "int8" if cfg.int8 else "fp16" if cfg.half else "fp32"
    return {
        "format": FORMAT,
        "name": name,
        "network": network,
        "precision": precision,
        "sha256": "",
        "classes": list(model.class_names),
        "size": {"height": height, "width": width},
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
            "root": str(catalog.root),
            **{key: trained.data[key] for key in ("split", "seed", "batch_size")},
        },
        "weights": weights_origin(summary),
        "versions": {
            "fish_lightning": __version__,
            "python": platform.python_version(),
            "onnx_opset": OPSET,
            **{package: version(package) for package in PACKAGES},
        },
    }


def write_export(folder: Path, export: Export) -> None:
    """Write all files; ``model.json`` comes last, and makes the folder an export.

    For an export that does not answer as the checkpoint does, only ``parity.json`` is written.
    """
    content = export.content
    write_json(folder / PARITY_FILE, export.parity)
    if not export.parity["passed"]:
        return
    model = model_file(folder, content["name"])
    with atomic_write(model) as temporary:
        temporary.write_bytes(export.graph)
    write_text(model.parents[1] / "config.pbtxt", rendered("config.pbtxt.j2", content=content))
    export.catalog.write_csv(folder / SPLIT_FILE)
    if export.calibration:
        write_calibration(folder, export.calibration)
    write_text(folder / CARD_FILE, model_card(content, export.parity, export.summary, export.catalog))
    write_json(folder / MODEL_FILE, content)
