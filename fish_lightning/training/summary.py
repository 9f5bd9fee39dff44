"""The contents of ``summary.json``, collected from a run's callbacks."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import EarlyStopping, Timer
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from omegaconf import DictConfig
from torch.utils.data import DataLoader

from fish_lightning import compat
from fish_lightning.data.catalog import Catalog
from fish_lightning.data.datamodule import FishDataModule
from fish_lightning.data.dataset import FishDataset, KeyedBatches
from fish_lightning.data.trained_sources import OtherSource
from fish_lightning.distributed.same_config import fingerprint, settings
from fish_lightning.errors import UserError
from fish_lightning.evaluation.outputs import Outputs
from fish_lightning.evaluation.scores import accuracy_of, score_test
from fish_lightning.models.classifier import FishClassifier, collect
from fish_lightning.training.best_checkpoint import BestCheckpoint, best_checkpoint
from fish_lightning.training.history import History, Row
from fish_lightning.training.nonfinite import NonFiniteLoss
from fish_lightning.training.trainer import callback_of

Summary = dict[str, Any]

#: Settings that leave out a part of the data.
LIMITS = ("limit_train_batches", "limit_val_batches", "limit_test_batches", "overfit_batches", "fast_dev_run")
NO_LIMIT = ("None", "1.0", "0.0", "False")


def stopped_by(trainer: L.Trainer) -> str | None:
    """Return what ended a run before its last epoch was complete: a setting's or a callback's name; None: nothing."""
    rows = history_rows(trainer)
    within_epoch = compat.next_batch(trainer)[1] > 0
    if trainer.max_epochs in (None, -1) or not rows:
        return None
    if (rows[-1]["epoch"] or 0) >= trainer.max_epochs and not within_epoch:
        return None
    if any(getattr(callback, "pruned", False) for callback in trainer.callbacks):  # type: ignore[attr-defined]
        return "pruning"
    early, timer = callback_of(trainer, EarlyStopping), callback_of(trainer, Timer)
    if early and early.stopping_reason != EarlyStoppingReason.NOT_STOPPED:
        return "early_stopping"
    if trainer.global_step == trainer.max_steps:
        return "max_steps"
    return "max_time" if timer and (timer.time_remaining() or 0) <= 0 else None


def history_rows(trainer: L.Trainer) -> list[Row]:
    """Return one row per epoch; none where the run keeps no history."""
    history = callback_of(trainer, History)
    return history.rows if history else []


def scores_of_test(trainer: L.Trainer, model: FishClassifier, data: FishDataModule) -> Summary:
    """Return what :func:`~fish_lightning.evaluation.scores.score_test` does, and the size of the tested split."""
    scores = score_test(model.test_predictions(), data.catalog, model.class_names, trainer.callback_metrics)
    return scores | {"images_in_split": len(data.catalog.indices(data.test_subset))}


def test_and_val_outputs(
    trainer: L.Trainer, model: FishClassifier, data: FishDataModule, tested: bool = True
) -> Outputs:
    """Return what the best checkpoint computes for test and validation images. Call it on every process.

    The validation images are for what must not be chosen on test images: temperature and thresholds.

    Args:
        trainer: trainer after the test, if there was one.
        model: the run's model.
        data: the run's data module.
        tested: whether there was a test, which has loaded the best checkpoint; False: validation images only.
    """
    ckpt = None if tested else best_checkpoint(trainer)
    validated: Any = trainer.predict(model, datamodule=data, ckpt_path=ckpt, weights_only=True)
    val = Outputs.of(collect(validated), data.catalog)
    return Outputs.concatenated([Outputs.of(model.test_predictions(), data.catalog), val]) if tested else val


def unknown_outputs(trainer: L.Trainer, model: FishClassifier, data: FishDataModule, catalog: Catalog) -> Outputs:
    """Return what the model computes for unknown images, whose label is -1.

    Unreadable images are excluded. Call it on every process.

    Args:
        trainer: the evaluation's trainer.
        model: the tested model.
        data: the evaluation's data module, whose transform, batch size and workers are used.
        catalog: catalog of the unknown images.

    Raises:
        UserError: none of the images can be read.
    """
    dataset = FishDataset(catalog, catalog.indices("all"), data.eval_transform, data.seed, on_error="skip")
    batches = KeyedBatches(len(dataset), data.batch_size, rank=trainer.global_rank, world_size=trainer.world_size)
    computed: Any = trainer.predict(model, DataLoader(dataset, batch_sampler=batches, **data.loader))
    outputs = Outputs.of(collect(computed), catalog)
    if not len(outputs):
        raise UserError(f"unknown: none of the {len(catalog)} images could be read")
    return replace(outputs, labels=np.full(len(outputs), -1))


def summarize_run(trainer: L.Trainer, model: FishClassifier, data: FishDataModule, cfg: DictConfig) -> Summary:
    """Return ``summary.json`` of a training run; called on every process, since predictions are gathered.

    Args:
        trainer: trainer after the fit, and after the test if there was one.
        model: the trained model.
        data: data module that it was trained on.
        cfg: the whole config; ``test`` says whether the best checkpoint was tested.
    """
    history, best = callback_of(trainer, History), callback_of(trainer, BestCheckpoint)
    nonfinite = callback_of(trainer, NonFiniteLoss)
    validated: dict[str, float | None] = dict(best.best_metrics) if best else {}
    if not validated and history and history.rows:  # no checkpoint is kept
        validated = {key.replace("_", "/", 1): value for key, value in history.rows[-1].items()}
    return {
        "test": scores_of_test(trainer, model, data) if cfg.test else {},
        "val": {key: validated[f"val/{key}"] for key in ("accuracy", "macro_f1", "loss") if f"val/{key}" in validated}
        | {"n": data.catalog.counts()["val"]},
        "best_epoch": best.best_epoch if best else None,
        "best_by": best.monitor if best else None,
        "compared_checkpoints": compared_checkpoints(trainer),
        "epochs": history.rows[-1]["epoch"] if history and history.rows else trainer.current_epoch,
        "seconds": history.seconds if history else None,
        "train_images_per_second": history.images_per_second if history else None,
        "seed": data.seed,
        "split": data.split_name,
        "leave_out": data.left_out_class,
        "data": str(data.catalog.root),
        "images": data.catalog.counts(),
        "leaked_test_images": int(data.catalog.leaked().sum()) if data.catalog.photographs_known else None,
        "classes": list(model.class_names),
        "model": model.hparams["name"],
        "weights": model.hparams["weights"],
        "pretrained": model.pretrained,
        "tta": model.tta,
        "precision": str(trainer.precision),
        "device": trainer.strategy.root_device.type,
        "processes": trainer.world_size,
        "skipped_batches": nonfinite.skipped if nonfinite else 0,
        "unreadable_images": data.catalog.paths[model.all_unreadable()].tolist(),
        "checkpoint": (best.best_model_path or None) if best else None,
        "stopped_by": stopped_by(trainer),
        "limits": {f"trainer.{name}": cfg.trainer[name] for name in LIMITS if str(cfg.trainer[name]) not in NO_LIMIT},
        "pruned": any(getattr(callback, "pruned", False) for callback in trainer.callbacks),  # type: ignore[attr-defined]
        "config": fingerprint(settings(cfg)),
    }


def compared_checkpoints(trainer: L.Trainer) -> int:
    """Return how many checkpoints a run chooses among by its validation, at most; 1 where it keeps the last or none.

    Epochs that early stopping has left out count: when it stops depends on the validation images too.
    """
    best = callback_of(trainer, BestCheckpoint)
    if not best or best.monitor == "step":
        return 1
    epochs = max(trainer.max_epochs or 0, trainer.current_epoch, 1)
    batches, interval = trainer.num_training_batches, trainer.val_check_batch
    within = math.ceil(batches / interval) if interval and 0 < interval < batches < math.inf else 1
    return max(1, epochs // (trainer.check_val_every_n_epoch or 1)) * within


def summarize_evaluation(
    trainer: L.Trainer, model: FishClassifier, data: FishDataModule, cfg: DictConfig, split: str
) -> Summary:
    """Return ``summary.json`` of an evaluation; called on every process, since predictions are gathered.

    On another data set, images that are copies of training images are tested separately: ``left_out`` contains their
    accuracy, interval, n and paths (None where copies are unknown). ``missing_training_images`` counts the training
    images that no longer exist, whose copies could not be found.

    Args:
        trainer: trainer after the test.
        model: the tested model.
        data: data module that it was tested on.
        cfg: the whole config.
        split: name of the training run's split.
    """
    given = Path(cfg.ckpt).expanduser().absolute()
    best = given / "checkpoints" / "best.ckpt"  # which a run folder stands for
    summary: Summary = {
        cfg.subset: scores_of_test(trainer, model, data),
        "unreadable_images": data.catalog.paths[model.all_unreadable()].tolist(),
        "data": str(data.catalog.root),
        "split": split,
        "tta": model.tta,
        "checkpoint": str(best if best.is_file() else given),
    }
    source = data.source
    if isinstance(source, OtherSource):
        left_out = None
        if source.trained is not None:
            images = data.catalog.paths[source.trained].tolist()
            scores: Summary = {"n": 0}
            if images:
                data.test_subset = "train"  # the split that OtherSource gives them
                trainer.test(model, datamodule=data, verbose=False)
                scores = accuracy_of(model.test_predictions().correct)
            left_out = scores | {"images": images}
        summary |= {"left_out": left_out, "missing_training_images": source.missing}
    return summary
