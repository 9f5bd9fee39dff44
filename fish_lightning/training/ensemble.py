"""Test an ensemble and its members on the images that none of them was trained on."""

import math
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import nn

from fish_lightning.data.datamodule import FishDataModule
from fish_lightning.evaluation.members import Tested, best_by_validation, gain_over, pooled_members, validated
from fish_lightning.evaluation.outputs import Outputs
from fish_lightning.models.checkpoint import restore
from fish_lightning.models.classifier import FishClassifier
from fish_lightning.models.ensemble import EnsembleNetwork
from fish_lightning.training.summary import Summary, scores_of_test, test_and_val_outputs

TIMED = 5  # forward passes of each network, after one that is not counted


def test_ensemble(
    trainer: L.Trainer, model: FishClassifier, data: FishDataModule, members: Mapping[str, dict[str, Any]]
) -> Tested:
    """Test an ensemble and each of its members on the images of ``data.test_subset``. Call it on every process.

    Args:
        trainer: trainer that runs the test.
        model: the ensemble.
        data: the ensemble's data module.
        members: checkpoints by name.
    """
    trainer.test(model, datamodule=data, verbose=False)
    predictions, scores = model.test_predictions(), scores_of_test(trainer, model, data)
    outputs = Outputs.of(predictions, data.catalog)
    if data.test_subset == "test" and len(data.catalog.indices("val")):
        outputs = test_and_val_outputs(trainer, model, data)
    forward = _forward_ratio(model, data)
    correct = {}
    for name, checkpoint in members.items():
        member, _ = restore(checkpoint, name)
        member.tta = model.tta
        trainer.test(member, datamodule=data, verbose=False)
        correct[name] = member.test_predictions().correct
    return Tested(data.test_subset, outputs, scores, correct, forward)


def summarize_ensemble(
    trainer: L.Trainer,
    model: FishClassifier,
    data: FishDataModule,
    files: Mapping[str, Path],
    tested: Tested | None,
    margin: float,
) -> Summary:
    """Return ``summary.json`` of an ensemble.

    Besides the keys of a training run that have a meaning for it: ``members`` (``run``, ``model``, ``val`` and the
    accuracy on the scored images of each), ``gain`` over the ``mean_member`` and the ``best_by_validation``
    (:func:`~fish_lightning.evaluation.members.gain_over`; None where it is not scored), ``cost`` (``forward``, times a
    member's; ``mb`` of the weights, ``member_mb``), and, where no photograph can be scored, ``members_pooled``
    (:func:`~fish_lightning.evaluation.members.pooled_members`).

    Args:
        trainer: trainer that ran the test.
        model: the ensemble.
        data: the ensemble's data module.
        files: checkpoints of the members by name.
        tested: results of the test; None where there is no image to score.
        margin: difference in accuracy that does not matter, 0 to 1.
    """
    network, catalog = model.network, data.catalog
    assert isinstance(network, EnsembleNetwork)
    sizes = [sum(tensor.nbytes for tensor in member.state_dict().values()) / 1e6 for member in network]
    members = [
        {
            "run": name,
            "model": of["name"],
            "val": validated(file),
            "accuracy": float(tested.correct[name].mean()) if tested else None,
        }
        for (name, file), of in zip(files.items(), model.hparams["members"], strict=True)
    ]
    compared = (int(validated(file).get("compared_checkpoints", 1)) for file in files.values())
    return {
        "test": {},
        "val": {},
        **({tested.subset: tested.scores} if tested else {}),
        "members": members,
        "compared_checkpoints": math.prod(compared),  # each member's epoch was chosen by its validation
        "gain": _gain(files, tested, margin) if tested else None,
        "cost": {"forward": tested.forward if tested else None, "mb": sum(sizes), "member_mb": float(np.mean(sizes))},
        "members_pooled": None if tested else pooled_members(files),
        "images": catalog.counts(),
        "seed": data.seed,
        "split": data.split_name,
        "data": str(catalog.root),
        "classes": list(model.class_names),
        "model": model.hparams["name"],
        "weights": "members",
        "tta": model.tta,
        "precision": str(trainer.precision),
        "device": trainer.strategy.root_device.type,
    }


def _gain(files: Mapping[str, Path], tested: Tested, margin: float) -> Summary:
    scored, best = tested.outputs.subset(tested.subset), best_by_validation(files)
    over = partial(gain_over, ensemble=scored.correct, units=scored.photographs_or_paths, margin=margin)
    of_best = {"run": best} | over([tested.correct[best]]) if best else None
    return {"mean_member": over([*tested.correct.values()]), "best_by_validation": of_best}


def _forward_ratio(model: FishClassifier, data: FishDataModule) -> float:
    """Return the duration of the ensemble's forward pass, as a multiple of the mean duration of a member's."""
    network = model.network
    assert isinstance(network, EnsembleNetwork)
    batch: Any = next(iter(data.test_dataloader()))
    model.to(model.trainer.strategy.root_device)  # the test has left it on the CPU
    images = model.normalize(batch["image"].to(model.device))
    whole, *single = (_seconds(part, images, model) for part in (network, *network))
    model.cpu()
    return whole / float(np.mean(single))


def _seconds(network: nn.Module, images: torch.Tensor, model: FishClassifier) -> float:
    """Return the median duration of a forward pass, in the precision of the test."""
    taken = []
    with torch.inference_mode(), model.trainer.precision_plugin.forward_context():
        for _ in range(1 + TIMED):
            start = time.perf_counter()
            network(images).sum().item()  # which waits for the device
            taken.append(time.perf_counter() - start)
    return float(np.median(taken[1:]))
