"""Build the graph of an export in the requested precision, and measure it against the checkpoint."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from omegaconf import DictConfig

from fish_lightning.data.catalog import Catalog
from fish_lightning.data.decoding import UnreadableImage, decode
from fish_lightning.data.trained_sources import RecordedSource
from fish_lightning.exporting.folder import Export, metadata, repository_name
from fish_lightning.exporting.graph import assembled, network_graph
from fish_lightning.exporting.parity import compare_precisions, measure_parity
from fish_lightning.exporting.precision import eight_bits, half_precision
from fish_lightning.exporting.preprocessing import output_size
from fish_lightning.models.trained import TrainedModel

Indices = npt.NDArray[np.int64]
BATCH = 32  # training images at a time


@dataclass(frozen=True)
class ParityImages:
    """The images by which an export is judged, all of the training run.

    Attributes:
        catalog: of the run, where its images are now.
        compared: indices of those that both sides answer: validation images, or test images if there are none.
        scored: indices of those that score the quantized model: test images, or those compared if there are none.
        train: indices of training images.
    """

    catalog: Catalog
    compared: Indices
    scored: Indices
    train: Indices


def judging_images(trained: TrainedModel, root: str | None, most: int | None, training: int) -> ParityImages:
    """Choose the images by which an export is judged.

    Args:
        trained: the checkpoint.
        root: where the images are now; None: where they were.
        most: number of validation and of test images at most, spread evenly over the catalog; None: all.
        training: number of training images.

    Raises:
        UserError: the images are not there.
    """
    state = trained.data["catalog"]
    held_out = "val" if "val" in state["splits"] else "test"
    catalog = RecordedSource(root, state, held_out).read()
    compared = _spread(catalog.indices(held_out), most)
    scored = _spread(catalog.indices("test"), most)
    return ParityImages(
        catalog, compared, scored if len(scored) else compared, _spread(catalog.indices("train"), training)
    )


def _spread(indices: Indices, most: int | None) -> Indices:
    if most is None or len(indices) <= most:
        return indices
    return indices[np.linspace(0, len(indices) - 1, most).astype(np.int64)]


def build(trained: TrainedModel, images: ParityImages, cfg: DictConfig) -> tuple[Export, bytes, dict[str, Any]]:
    """Build the graph and measure it.

    Args:
        trained: the checkpoint.
        images: by which it is judged.
        cfg: the composed ``conf/export.yaml``.

    Returns:
        What is to be written, the serialized ONNX model, and the content of ``parity.json``. Of a quantized model the
        figures at its top are its own, ``fp32`` has those of the network before quantization, which decide with the
        verdict in ``int8`` whether it ``passed``.

    Raises:
        UserError: the graph cannot compute the pipeline or the network.
    """
    model = trained.module
    pipeline = model.hparams["eval_transform"]
    height, width = output_size(pipeline)
    precision = "int8" if cfg.int8 else "fp16" if cfg.half else "fp32"
    name = repository_name(cfg.name, model.hparams["name"])
    export = Export(trained, str(cfg.ckpt), images.catalog, name, precision, height, width)
    network = network_graph(model, height, width)

    def whole(core: Any) -> bytes:
        graph: bytes = assembled(core, pipeline, trained.calibration, metadata(export)).SerializeToString()
        return graph

    def parity(graph: bytes) -> dict[str, Any]:
        return measure_parity(trained, graph, images.catalog, images.compared, cfg.export.tolerance)

    if precision == "int8":
        full, graph = whole(network), whole(eight_bits(network, _pixels(trained, images)))
        exact = parity(full)
        small = compare_precisions(full, graph, images.catalog, images.scored, cfg.export.margin)
        passed = exact["passed"] and small["verdict"] != "worse"
        return export, graph, parity(graph) | {"passed": passed, "fp32": exact, "int8": small}
    graph = whole(half_precision(network) if precision == "fp16" else network)
    return export, graph, parity(graph)


def _pixels(trained: TrainedModel, images: ParityImages) -> Iterator[npt.NDArray[np.uint8]]:
    """Yield training images as the network sees them, (N, 3, H, W) uint8; unreadable ones are left out."""
    for start in range(0, len(images.train), BATCH):
        batch = []
        for index in images.train[start : start + BATCH].tolist():
            try:
                pixels = decode(images.catalog.root / str(images.catalog.paths[index]))
            except UnreadableImage:
                continue
            batch.append(trained.transform(image=pixels)["image"].numpy())
        if batch:
            yield np.stack(batch)
