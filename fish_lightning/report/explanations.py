"""What a report needs from the model besides ``logits.npz``: nearest training images, heat maps, and the audit."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from fish_lightning.data.catalog import Catalog
from fish_lightning.data.datamodule import FishDataModule
from fish_lightning.data.decoding import UnreadableImage, decode
from fish_lightning.data.masks import load_mask, mask_files
from fish_lightning.errors import UserError
from fish_lightning.evaluation.analysis import Analysis
from fish_lightning.evaluation.audit import Audit, audit, overall_verdict, spread_over_photographs
from fish_lightning.evaluation.heatmaps import heat_maps, upsampled
from fish_lightning.evaluation.outputs import Outputs, Predictions
from fish_lightning.models.classifier import FishClassifier
from fish_lightning.models.ensemble import EnsembleNetwork

Indices = npt.NDArray[np.int64]
BATCH = 32  # images at a time
#: Images at most. Each passes through the network here, once or, in the audit, four times and for its heat map.
TRAINING_PHOTOGRAPHS = 150  # that errors and unknown images are compared with, one image of each
PER_CLASS = 5  # of these, where there are many classes
MOST_TRAINING_PHOTOGRAPHS = 1000
AUDITED = BATCH  # of the tested images and of the training images


def training_outputs(model: FishClassifier, data: FishDataModule, catalog: Catalog) -> Outputs | None:
    """Return what the model computes for one image of each training photograph; if there are many, for an even sample.

    Args:
        model: the tested model.
        data: data module whose transform is used.
        catalog: catalog that contains the training images.

    Returns:
        The outputs; None if none of the images can be read.
    """
    trained = catalog.indices("train")
    most = min(MOST_TRAINING_PHOTOGRAPHS, max(TRAINING_PHOTOGRAPHS, PER_CLASS * len(catalog.classes)))
    _, first = np.unique(catalog.photographs_or_paths[trained], return_index=True)
    chosen = trained[np.sort(first)]
    if len(chosen) > most:
        chosen = chosen[np.linspace(0, len(chosen) - 1, most).astype(np.int64)]
    return _outputs(model, data, catalog, chosen)


def left_out_outputs(model: FishClassifier, data: FishDataModule) -> tuple[Outputs | None, int]:
    """Return what the model computes for test images of the class it was trained without, and how many are excluded.

    Copies of training images are excluded: photographs with copies under two labels. The outputs are None without such
    a class, or without images of it.
    """
    left_out = data.left_out
    if left_out is None:
        return None, 0
    copied = left_out.copies_of(data.catalog.photographs[data.catalog.splits == "train"])
    return _outputs(model, data, left_out, np.flatnonzero(~copied)), int(copied.sum())


def _outputs(model: FishClassifier, data: FishDataModule, catalog: Catalog, chosen: Indices) -> Outputs | None:
    """Return what the model computes for some images of a catalog; None if none can be read."""
    parts = []
    for indices, images in _batches(data, catalog, chosen):
        with torch.inference_mode(), _precision(model):
            computed = model.logits_and_features(images.to(model.device))
        parts.append((indices, computed[0].cpu().numpy(), computed[1].half().cpu().numpy()))
    if not parts:
        return None
    at, logits, features = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Outputs.of(Predictions(at, catalog.labels[at], logits, features), catalog)


def error_heat_maps(
    model: FishClassifier, data: FishDataModule, analysis: Analysis
) -> tuple[dict[str, npt.NDArray[np.float32]], str]:
    """Return heat maps of the listed errors' predicted classes by path, and why there are none or ``""``."""
    tested, listed = analysis.images, [error.image for error in analysis.errors]
    predicted = dict(zip(tested.paths[listed].tolist(), tested.preds[listed].tolist(), strict=True))
    found = np.flatnonzero(np.isin(data.catalog.paths, list(predicted)))
    maps: dict[str, npt.NDArray[np.float32]] = {}
    try:
        for indices, images in _batches(data, data.catalog, found):
            paths = [str(data.catalog.paths[index]) for index in indices]
            maps |= zip(paths, _heat(model, images, [predicted[path] for path in paths]), strict=True)
    except UserError as error:
        return {}, str(error)
    return maps, ""


def audit_report(model: FishClassifier, data: FishDataModule, outputs: Outputs, training: bool) -> dict[str, Any] | str:
    """Return the audit of some tested and some training images, or why there is none.

    A background that reveals the class in training only is found by an audit of training images: test images lack it.

    Args:
        model: the tested model.
        data: the model's data module; masks are known for the fish archive and for the sample data.
        outputs: outputs for the tested images.
        training: whether to audit training images too; False where they are among the tested ones.

    Returns:
        ``looks_at`` and ``verdict`` (see :func:`~fish_lightning.evaluation.audit.overall_verdict`), ``tested`` and
        ``training``: :class:`~fish_lightning.evaluation.audit.Audit` as dicts; ``training`` is None without one.
    """
    catalog, trained = data.catalog, None
    try:
        tested = _audit(model, data, np.flatnonzero(np.isin(catalog.paths, outputs.paths)))
    except UserError as error:
        return str(error)
    if training:
        with suppress(UserError):
            trained = _audit(model, data, catalog.indices("train"), with_heat=False)
    looks_at, verdict = overall_verdict(tested, trained)
    audits = {"tested": asdict(tested), "training": None if trained is None else asdict(trained)}
    return {"looks_at": looks_at, "verdict": verdict, **audits}


def _audit(model: FishClassifier, data: FishDataModule, indices: Indices, with_heat: bool = True) -> Audit:
    """Audit some of these images.

    Raises:
        UserError: there are no such images; the message says why.
    """
    catalog = data.catalog
    masks = mask_files(catalog, indices)
    if not masks:
        raise UserError("the images have no masks of their objects")
    known = np.array(sorted(masks), dtype=np.int64)
    chosen = known[spread_over_photographs(catalog.photographs_or_paths[known], AUDITED)]
    images, objects, kept = [], [], []
    for part, batch in _batches(data, catalog, chosen):
        for index, image in zip(part.tolist(), batch.numpy(), strict=True):
            with suppress(UnreadableImage):
                objects.append(load_mask(masks[index], data.eval_transform))
                images.append(image)
                kept.append(index)
    if not kept:
        raise UserError("the masks cannot be read")
    at, pixels = np.array(kept), np.stack(images)

    def predict(variants: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        with torch.inference_mode(), _precision(model):
            logits = model(torch.from_numpy(variants).to(model.device))
        return np.asarray(logits.float().softmax(1).cpu())

    heat = None
    if with_heat:
        # A network without feature maps has no heat maps; the rest of the audit needs none.
        with suppress(UserError):
            heat = upsampled(_heat(model, torch.from_numpy(pixels)), *pixels.shape[2:])
    return audit(pixels, np.stack(objects), catalog.labels[at], catalog.photographs_or_paths[at], predict, heat)


def _heat(model: FishClassifier, images: Tensor, classes: Sequence[int] | None = None) -> npt.NDArray[np.float32]:
    """Return heat maps of these classes, or of the predicted ones; of an ensemble, the mean of its members' maps."""
    normalized = model.normalize(images.to(model.device))
    explained = None if classes is None else torch.tensor(list(classes), device=model.device)
    if not isinstance(model.network, EnsembleNetwork):
        return heat_maps(model.network, normalized, explained)
    if explained is None:
        with torch.no_grad(), _precision(model):
            explained = model.network(normalized).argmax(1)
    maps = [heat_maps(member.network, member.normalize(normalized), explained) for member in model.network]
    height, width = max(heat.shape[1:] for heat in maps)
    mean = np.mean([upsampled(heat, height, width) for heat in maps], axis=0)
    return np.asarray(mean / np.maximum(mean.max((1, 2), keepdims=True), np.finfo(np.float32).tiny), dtype=np.float32)


def _precision(model: FishClassifier) -> AbstractContextManager[Any]:
    """Compute in the precision of the test: in bf16 where that is fast."""
    try:
        return model.trainer.precision_plugin.forward_context()
    except RuntimeError:  # of no trainer
        return nullcontext()


def _batches(data: FishDataModule, catalog: Catalog, indices: Indices) -> Iterator[tuple[Indices, Tensor]]:
    """Yield some images of a catalog as the model sees them, (B, 3, H, W) uint8, and their indices.

    Unreadable images are left out.
    """
    for start in tqdm(range(0, len(indices), BATCH), "report", unit="batch", leave=False, disable=None):
        kept, images = [], []
        for index in indices[start : start + BATCH].tolist():
            try:
                pixels = decode(catalog.root / str(catalog.paths[index]))
            except UnreadableImage:
                continue
            kept.append(index)
            images.append(data.eval_transform(image=pixels)["image"])
        if kept:
            yield np.array(kept, dtype=np.int64), torch.stack(images)
