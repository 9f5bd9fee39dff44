"""Build the graph of an export in the requested precision, and measure it against the checkpoint."""

import hashlib
import json
from typing import Any

import numpy as np
import numpy.typing as npt
from omegaconf import DictConfig

from fish_lightning.data.trained_sources import RecordedSource
from fish_lightning.exporting.folder import Export, description
from fish_lightning.exporting.graph import assembled, network_graph
from fish_lightning.exporting.parity import compare_precisions, decoded, measure_parity
from fish_lightning.exporting.precision import eight_bits, half_precision
from fish_lightning.exporting.preprocessing import Nodes, add_preprocessing
from fish_lightning.files import read_summary, run_of
from fish_lightning.models.checkpoint import checkpoint_file
from fish_lightning.models.exported import IMAGES, PIXELS
from fish_lightning.models.trained import TrainedModel

Indices = npt.NDArray[np.int64]


def build(trained: TrainedModel, cfg: DictConfig) -> Export:
    """Build the graph and measure it on images of the training run.

    The answers are compared on its validation images, or on test images if there are none; a quantized model is scored
    on test images, or on the images compared if there are none. ``export.images`` of each are spread over the catalog.

    Args:
        trained: the checkpoint.
        cfg: the composed ``conf/export.yaml``.

    Returns:
        The export to write. In the parity of a quantized model the figures at the top are its own, and ``fp32`` has
        those of the network before quantization, which decide with the verdict in ``int8`` whether it ``passed``.

    Raises:
        UserError: the images are not there, or the graph cannot compute the pipeline or the network.
    """
    state = trained.data["catalog"]
    held_out = "val" if "val" in state["splits"] else "test"
    catalog = RecordedSource(cfg.data.root, state, held_out).read()
    compared, tested = (_spread(catalog.indices(split), cfg.export.images) for split in (held_out, "test"))
    pipeline = trained.module.hparams["eval_transform"]
    height, width = add_preprocessing(Nodes(""), IMAGES, PIXELS, pipeline)  # of the images that the network sees
    summary = read_summary(run_of(checkpoint_file(cfg.ckpt)))
    content = description(trained, cfg, catalog, height, width, summary)
    metadata = {key: json.dumps(content[key]) for key in ("classes", "input", "outputs", "rules")}
    network = network_graph(trained.module, height, width)

    def whole(core: Any) -> bytes:
        return bytes(assembled(core, pipeline, trained.calibration, metadata).SerializeToString())

    def parity_of(graph: bytes) -> dict[str, Any]:
        return measure_parity(trained, graph, catalog, compared, cfg.export.tolerance)

    if cfg.int8:
        training = decoded(catalog, _spread(catalog.indices("train"), cfg.export.calibration_images), "quantization")
        seen = (np.stack([trained.transform(image=image)["image"].numpy() for image in batch]) for _, batch in training)
        full, graph = whole(network), whole(eight_bits(network, seen))
        exact = parity_of(full)
        small = compare_precisions(full, graph, catalog, tested if len(tested) else compared, cfg.export.margin)
        passed = exact["passed"] and small["verdict"] != "worse"
        parity = parity_of(graph) | {"passed": passed, "fp32": exact, "int8": small}
    else:
        graph = whole(half_precision(network) if cfg.half else network)
        parity = parity_of(graph)
    content["sha256"] = hashlib.sha256(graph).hexdigest()
    return Export(content, graph, parity, catalog, trained.calibration, summary)


def _spread(indices: Indices, most: int | None) -> Indices:
    """Return at most ``most`` of the indices, spread evenly; None: all."""
    if most is None or len(indices) <= most:
        return indices
    return indices[np.linspace(0, len(indices) - 1, most).astype(np.int64)]
