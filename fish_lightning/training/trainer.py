"""Create trainer and model from the config, without Lightning's tips and with short errors."""

from collections.abc import Sequence
from typing import Any, TypeVar

import albumentations as A
import hydra
import lightning as L
import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig

from fish_lightning import compat
from fish_lightning.data.datamodule import FishDataModule
from fish_lightning.distributed.cluster import slurm_tasks
from fish_lightning.errors import UserError, one_line
from fish_lightning.hardware import busy_note, cores, cpu_has_bf16, fastest_precision
from fish_lightning.models.classifier import FishClassifier
from fish_lightning.run_log import say

C = TypeVar("C", bound=Callback)


def callback_of(trainer: L.Trainer, of: type[C]) -> C | None:
    """Return the trainer's callback of a class; None without one."""
    return next((callback for callback in trainer.callbacks if isinstance(callback, of)), None)  # type: ignore[attr-defined]


def build_trainer(
    cfg: DictConfig, callbacks: Sequence[Callback] = (), loggers: Sequence[Logger] = (), precision: str | None = None
) -> L.Trainer:
    """Instantiate ``cfg`` (the ``trainer`` group) with ``trainer.precision=auto`` resolved.

    Args:
        cfg: the ``trainer`` group.
        callbacks: callbacks in the order they are called.
        loggers: the run's loggers.
        precision: precision that ``auto`` means, if not the fastest (evaluation uses the training run's).

    Raises:
        UserError: a setting is invalid, such as an accelerator that this machine does not have.
    """
    compat.quiet_lightning()
    chosen = cfg.precision
    if chosen == "auto":
        chosen = precision or fastest_precision(cfg.accelerator)
    extra: dict[str, Any] = {"precision": chosen, "callbacks": list(callbacks), "logger": list(loggers)}
    if not any(isinstance(callback, Checkpoint) for callback in callbacks):
        extra["enable_checkpointing"] = False
    try:
        trainer: L.Trainer = hydra.utils.instantiate(cfg, **extra)
        _require_resources(trainer)
    except hydra.errors.InstantiationException as error:
        cause = error.__cause__ or error
        if isinstance(cause, (MisconfigurationException, ValueError, TypeError, RuntimeError, ImportError)):
            raise UserError(f"trainer: {one_line(cause)}") from None
        raise
    if cfg.precision == "auto" and trainer.strategy.root_device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32 for operations that autocast keeps in fp32
    if str(chosen).startswith("bf16") and trainer.strategy.root_device.type == "cpu" and not cpu_has_bf16():
        say("note: this CPU has no bf16 instructions; trainer.precision=32-true is about three times as fast")
    if note := busy_note(cfg.accelerator):
        say(note)
    return trainer


def build_model(cfg: DictConfig, data: FishDataModule) -> FishClassifier:
    """Instantiate the model of a run, with its optimizer and schedule.

    Args:
        cfg: the whole config.
        data: the run's data module, after ``setup``.
    """
    model: FishClassifier = hydra.utils.instantiate(
        cfg.model,
        class_names=data.catalog.classes,
        eval_transform=A.to_dict(data.eval_transform),
        class_weights=data.class_weights() if cfg.model.class_weights else None,
        optimizer=hydra.utils.instantiate(cfg.optimizer),
        scheduler=hydra.utils.instantiate(cfg.scheduler),
    )
    model.tta = cfg.tta
    return model


def _require_resources(trainer: L.Trainer) -> None:
    """Check devices and nodes against this machine and Slurm's allocation, before the ranks wait for one another."""
    if trainer.strategy.root_device.type == "cpu" and trainer.num_devices > max(2, cores()):
        raise UserError(
            f"trainer.devices={trainer.num_devices}: at most one process per core, and this machine has {cores()}"
        )
    environment = getattr(trainer.strategy, "cluster_environment", None)
    if environment is not None:
        asked, tasks = trainer.num_devices * trainer.num_nodes, slurm_tasks()
        if isinstance(environment, SLURMEnvironment) and tasks != asked:
            raise UserError(
                f"trainer: Slurm runs {tasks} task(s), but trainer.devices times trainer.num_nodes is {asked}\n"
                f"request one task per process (--ntasks={asked}) and start them with srun"
            )
        try:
            environment.validate_settings(num_devices=trainer.num_devices, num_nodes=trainer.num_nodes)
        except ValueError as error:
            raise UserError(f"trainer: {one_line(error)}") from None
