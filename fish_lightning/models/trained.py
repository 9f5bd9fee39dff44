"""A trained model as programs use it: module, transform, precision, calibration."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import albumentations as A

from fish_lightning.errors import UserError
from fish_lightning.evaluation.stored_calibration import Stored, read_calibration
from fish_lightning.models.checkpoint import load_checkpoint, restore, weights_digest
from fish_lightning.models.classifier import FishClassifier
from fish_lightning.models.exported import is_export, read_export, restore_export, trained_on


@dataclass(frozen=True)
class TrainedModel:
    """The model that ``ckpt`` names.

    Attributes:
        module: the classifier, in evaluation mode.
        transform: the pipeline from decoded RGB pixels to what the module is given.
        precision: precision of the training run, as ``lightning.Trainer`` takes it.
        calibration: content of the run's ``calibration.json``; empty: nothing is calibrated.
        note: why nothing is calibrated, or ``""``.
        weights: digest of the weights.
        data: state of the run's data module: catalog, name of the split, seed, batch size.
    """

    module: FishClassifier
    transform: A.Compose
    precision: str
    calibration: Stored
    note: str
    weights: str
    data: dict[str, Any]


def open_model(ckpt: str | Path, tta: str | None = None) -> TrainedModel:
    """Open a trained model.

    Args:
        ckpt: a checkpoint, a run folder, which stands for its best checkpoint, or the folder of an export.
        tta: test-time augmentation, see :mod:`fish_lightning.models.tta`.

    Raises:
        UserError: there is no checkpoint, it or the run's ``calibration.json`` is corrupt, or an export was altered, is
            of another version or has other views than ``tta`` in its graph.
    """
    module: FishClassifier
    if is_export(ckpt):
        content, graph = read_export(ckpt)
        if tta not in (None, content["tta"]):
            raise UserError(
                f"tta={tta}: the graph of this export has {content['tta'] or 'no'} views\n"
                f"export with tta={tta}, or pass the checkpoint"
            )
        module, transform = restore_export(content, graph)
        weights, precision, data = content["checkpoint"]["weights"], "32-true", trained_on(ckpt, content)
    else:
        checkpoint = load_checkpoint(ckpt)
        module, transform = restore(checkpoint, ckpt)
        module.tta = tta
        weights, precision, data = weights_digest(module), checkpoint["precision"], checkpoint["FishDataModule"]
    calibration, note = read_calibration(ckpt, module.class_names, weights, module.tta)
    return TrainedModel(module, transform, precision, calibration, note, weights, data)
