"""Build the graph of an export in the requested precision, and measure it against the checkpoint."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from omegaconf import DictConfig

from fish_lightning.data.catalog import Catalog
from fish_lightning.data.trained_sources import RecordedSource
from fish_lightning.exporting.folder import Export, description
from fish_lightning.exporting.graph import assembled, network_graph
from fish_lightning.exporting.parity import compare_precisions, decoded, measure_parity
from fish_lightning.exporting.precision import eight_bits, half_precision
from fish_lightning.exporting.preprocessing import output_size
from fish_lightning.files import read_summary, run_of
from fish_lightning.models.checkpoint import checkpoint_file
from fish_lightning.models.trained import TrainedModel

Indices = npt.NDArray[np.int64]


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


def build(trained: TrainedModel, images: ParityImages, cfg: DictConfig) -> Export:
    """Build the graph and measure it.

    Args:
        trained: the checkpoint.
        images: by which it is judged.
        cfg: the composed ``conf/export.yaml``.

    Returns:
        What is to be written. In the parity of a quantized model the figures at the top are its own, ``fp32`` has those
        of the network before quantization, which decide with the verdict in ``int8`` whether it ``passed``.

    Raises:
        UserError: the graph cannot compute the pipeline or the network.
    """
    pipeline = trained.module.hparams["eval_transform"]
    height, width = output_size(pipeline)
    summary = read_summary(run_of(checkpoint_file(cfg.ckpt)))
    content = description(trained, cfg, images.catalog, height, width, summary)
    metadata = {key: json.dumps(content[key]) for key in ("classes", "input", "outputs", "rules")}
    network = network_graph(trained.module, height, width)

    def whole(core: Any) -> bytes:
        graph: bytes = assembled(core, pipeline, trained.calibration, metadata).SerializeToString()
        return graph

    def parity_of(graph: bytes) -> dict[str, Any]:
        return measure_parity(trained, graph, images.catalog, images.compared, cfg.export.tolerance)

    if cfg.int8:
        training = decoded(images.catalog, images.train, "quantization")
        seen = (np.stack([trained.transform(image=image)["image"].numpy() for image in batch]) for _, batch in training)
        full, graph = whole(network), whole(eight_bits(network, seen))
        exact = parity_of(full)
        small = compare_precisions(full, graph, images.catalog, images.scored, cfg.export.margin)
        passed = exact["passed"] and small["verdict"] != "worse"
        parity = parity_of(graph) | {"passed": passed, "fp32": exact, "int8": small}
    else:
        graph = whole(half_precision(network) if cfg.half else network)
        parity = parity_of(graph)
    content["sha256"] = hashlib.sha256(graph).hexdigest()
    return Export(content, graph, parity, images.catalog, trained.calibration, summary)
