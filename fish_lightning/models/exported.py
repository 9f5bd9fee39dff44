"""A trained model that ``fish_lightning.export`` wrote, computed by ONNX Runtime: no network of torch is built.

An export is a folder: ``model.json`` says what ``<name>/1/model.onnx`` computes, ``split.csv`` on which images it was
trained. The graph is run in its two parts, so that images of any sizes can be batched: the first makes
``pixels`` of each image, in place of the checkpoint's albumentations pipeline, and the second computes logits and
features of batches. Cut at that one tensor, they are the nodes of the file, in its order.
"""

import hashlib
import json
import os
import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import albumentations as A
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fish_lightning.data.catalog import COLUMNS, Catalog
from fish_lightning.errors import UserError, first_line
from fish_lightning.files import read_rows, shown
from fish_lightning.models.checkpoint_schema import CLASSES, MEAN, NAME, PIPELINE, STD, Description, undescribed
from fish_lightning.models.classifier import FishClassifier
from fish_lightning.settings.rules import COUNT, MODEL_NAME, SEED, SIZE, TEXT, TTA, Rule, choice

#: Increment it with every change to ``model.json`` or to the graph's inputs and outputs that a reader must know of.
FORMAT = 1
MODEL_FILE, SPLIT_FILE = "model.json", "split.csv"
#: Input and outputs of the graph, and the tensor between preprocessing and network.
IMAGES, PIXELS = "images", "pixels"
PROBABILITIES, LOGITS, FEATURES, UNKNOWN_SCORE = "probabilities", "logits", "features", "unknown_score"

_HASH = Rule(("a SHA-256",), lambda v: isinstance(v, str) and bool(re.fullmatch(r"[0-9a-f]{64}", v)))
DESCRIPTION: dict[str, Description] = {
    "name": MODEL_NAME,
    "network": TEXT,
    "precision": choice("fp32", "fp16", "int8"),
    "sha256": _HASH,
    "classes": CLASSES,
    "size": {"height": SIZE, "width": SIZE},
    "preprocessing": {"transform": PIPELINE, "mean": MEAN, "std": STD},
    "tta": TTA,
    "checkpoint": {"file": NAME, "sha256": _HASH, "weights": _HASH, "precision": TEXT},
    "data": {"root": NAME, "split": TEXT, "seed": SEED, "batch_size": COUNT},
}


def model_file(folder: Path, name: str) -> Path:
    """Return the ONNX file of an export, where Triton and KServe look for version 1 of a model."""
    return folder / name / "1" / "model.onnx"


def is_export(path: str | Path) -> bool:
    """Return whether a path is the folder of an export."""
    return (Path(path).expanduser() / MODEL_FILE).is_file()


def require_onnx() -> None:
    """Require the packages that read and compute ONNX files.

    Raises:
        UserError: one of them is not installed.
    """
    for package in ("onnx", "onnxruntime"):
        if find_spec(package) is None:
            raise UserError(f"exports require {package}: pip install onnx onnxruntime")


def read_export(path: str | Path) -> tuple[dict[str, Any], bytes]:
    """Read and check an export; nothing in it is executed.

    Returns:
        The content of ``model.json``, and the ONNX file.

    Raises:
        UserError: another version of the format, a corrupt ``model.json``, or a model that is missing or was altered.
    """
    folder = Path(path).expanduser()
    file = folder / MODEL_FILE
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"ckpt: {shown(file)} is corrupt ({first_line(error)})\nexport the checkpoint again") from None
    version = content.get("format") if isinstance(content, dict) else None
    if isinstance(version, int) and version != FORMAT:
        raise UserError(
            f"ckpt: {shown(folder)} is an export of format {version}, this version of fish_lightning reads {FORMAT}\n"
            "export the checkpoint again, or install the version that wrote it"
        )
    faults = list(undescribed(content, {"format": choice(FORMAT), **DESCRIPTION}))
    if faults:
        raise UserError(f"ckpt: {shown(file)} is corrupt or incomplete ({faults[0]})\nexport the checkpoint again")
    model = model_file(folder, content["name"])
    try:
        graph = model.read_bytes()
    except OSError as error:
        raise UserError(
            f"ckpt: {shown(model)} cannot be read ({error.strerror})\nexport the checkpoint again"
        ) from None
    if hashlib.sha256(graph).hexdigest() != content["sha256"]:
        raise UserError(
            f"ckpt: {shown(model)} was altered after the export: its SHA-256 is not that in {MODEL_FILE}\n"
            "restore it, or export the checkpoint again"
        )
    return content, graph


def trained_on(path: str | Path, content: dict[str, Any]) -> dict[str, Any]:
    """Return what a checkpoint's data module remembers: catalog, split, seed and batch size.

    Raises:
        UserError: ``split.csv`` is missing or does not fit the classes.
    """
    file, classes = Path(path).expanduser() / SPLIT_FILE, content["classes"]
    rows, number = read_rows(file, "ckpt", COLUMNS), {name: index for index, name in enumerate(classes)}
    if others := {row["label"] for row in rows} - number.keys():
        raise UserError(f"ckpt: {shown(file)} has a label that is none of the classes: {min(others)}")
    catalog = Catalog(
        root=Path(content["data"]["root"]),
        paths=np.array([row["path"] for row in rows], dtype=np.str_),
        labels=np.array([number[row["label"]] for row in rows], dtype=np.int64),
        photographs=np.array([row["photograph"] for row in rows], dtype=np.str_),
        splits=np.array([row["split"] for row in rows], dtype=np.str_),
        classes=tuple(classes),
    )
    return {"catalog": catalog.state(), **{key: content["data"][key] for key in ("split", "seed", "batch_size")}}


class Session:
    """A graph in ONNX Runtime, on the CPU; each process creates its own when it first computes.

    Args:
        graph: a serialized ONNX model with one input.
        outputs: names of the outputs to compute.
        threads: number of threads; None: as many as torch uses.
    """

    def __init__(self, graph: bytes, outputs: Sequence[str], threads: int | None = None) -> None:
        self._graph, self._outputs, self._threads = graph, list(outputs), threads
        self._process, self._session = -1, None

    def __call__(self, images: npt.NDArray[np.uint8]) -> list[npt.NDArray[Any]]:
        """Return the outputs for a batch."""
        if self._process != os.getpid():  # the threads of a session do not survive a fork
            self._process, self._session = os.getpid(), self._started()
        session: Any = self._session
        computed: list[npt.NDArray[Any]] = session.run(self._outputs, {session.get_inputs()[0].name: images})
        return computed

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_process": -1, "_session": None}  # for spawned workers

    def _started(self) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads or torch.get_num_threads()
        options.log_severity_level = 3  # errors
        return onnxruntime.InferenceSession(self._graph, options, providers=["CPUExecutionProvider"])


def parts(graph: bytes) -> tuple[bytes, bytes]:
    """Cut a graph at ``pixels``: return preprocessing, and network with what follows it."""
    import onnx

    extractor = onnx.utils.Extractor(onnx.load_from_string(graph))
    before = extractor.extract_model([IMAGES], [PIXELS])
    after = extractor.extract_model([PIXELS], [LOGITS, FEATURES])
    return before.SerializeToString(), after.SerializeToString()


class GraphPreprocessing(A.DualTransform):
    """The preprocessing of an export: images go through its graph, masks through the pipeline that it was made from.

    Attributes:
        session: session of the graph's first part.
        pipeline: the original pipeline, without ``ToTensorV2``.
    """

    session: Session
    pipeline: A.Compose

    def apply(self, img: npt.NDArray[np.uint8], **params: Any) -> npt.NDArray[np.uint8]:
        """Return the (height, width, 3) result for an image (H, W, 3) uint8."""
        (pixels,) = self.session(img[None])
        return np.ascontiguousarray(pixels[0].transpose(1, 2, 0))

    def apply_to_mask(self, mask: npt.NDArray[Any], *args: Any, **params: Any) -> npt.NDArray[Any]:
        """Return a mask with the geometry of its image."""
        return np.asarray(self.pipeline(image=np.zeros((*mask.shape[:2], 3), np.uint8), mask=mask)["mask"])


class ExportedClassifier(FishClassifier):
    """A classifier whose network is the graph of an export.

    Attributes:
        session: session of the graph's second part.
    """

    session: Session

    def configure_network(self) -> None:
        """Build nothing: the network is in the graph."""

    def logits_and_features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (N, C) and features (N, D) of images (N, 3, H, W) uint8, with the views in the graph."""
        computed = self.session(np.ascontiguousarray(images.cpu().numpy()))
        logits, features = (torch.from_numpy(part).to(images.device) for part in computed)
        return logits, features

    def single_view(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return :meth:`logits_and_features`: the views are in the graph."""
        return self.logits_and_features(images)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, C) of images (N, 3, H, W) uint8."""
        return self.logits_and_features(images)[0]

    def normalize(self, images: Tensor) -> Tensor:
        """Refuse: normalized images are only needed for heat maps, which also need gradients of the network.

        Raises:
            UserError: always.
        """
        raise UserError("An export computes no gradients, so there are no heat maps: evaluate the checkpoint.")


def restore_export(content: dict[str, Any], graph: bytes) -> tuple[ExportedClassifier, A.Compose]:
    """Return the classifier, in evaluation mode, and the transform of an export.

    Args:
        content: content of ``model.json``.
        graph: content of the ONNX file.

    Raises:
        UserError: the graph lacks a tensor that exports have, or a package is missing.
    """
    require_onnx()
    try:
        before, after = parts(graph)
    except (ValueError, KeyError) as error:
        raise UserError(f"ckpt: the graph is not that of an export ({first_line(error)})") from None
    normalization = {key: content["preprocessing"][key] for key in ("mean", "std")}
    model = ExportedClassifier(content["classes"], content["network"], **normalization)
    model.session, model.tta = Session(after, [LOGITS, FEATURES]), content["tta"]
    pipeline: Any = A.from_dict(content["preprocessing"]["transform"])
    preprocessing = GraphPreprocessing(p=1)
    preprocessing.session = Session(before, [PIXELS], threads=1)
    preprocessing.pipeline = A.Compose([step for step in pipeline if not isinstance(step, A.ToTensorV2)])
    return model.eval(), A.Compose([preprocessing, A.ToTensorV2()])
