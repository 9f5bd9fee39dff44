"""A ``lightning.Trainer`` from its config, quiet where Lightning advertises and short where a setting is wrong."""

import logging
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
import lightning as L
import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, Checkpoint, EarlyStopping
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig

from fish_lightning.callbacks.agreement import SameConfig
from fish_lightning.callbacks.checkpoints import BestCheckpoint
from fish_lightning.config import require_same_steps, settings
from fish_lightning.errors import UserError
from fish_lightning.files import remove_strays, shown
from fish_lightning.hardware import cores, cpu_has_bf16, fastest_precision, slurm_restarts
from fish_lightning.models.classifier import load_checkpoint, well_formed

#: Lightning's warnings that do not apply here, with the reason.
_NOT_OURS = (
    ".*does not have many workers.*",  # the worker count is chosen from the CPU affinity
    ".*your dataloader is not resumable.*",  # KeyedBatches goes on at the right batch
    ".*Experiment logs directory.*",  # the run folder holds .hydra before the logger starts
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*The number of training batches .* is smaller than the logging interval.*",
    ".*lr_scheduler.step.*before.*optimizer.step.*",  # a batch passed over (data.on_error=skip) steps the schedule only
    r".*Please add the following callbacks: \['Timer.*",  # of trainer.max_time, which a resumed run may do without
    ".*isinstance.treespec, LeafSpec.. is deprecated.*",
)


def build_trainer(
    cfg: DictConfig, callbacks: Sequence[Callback] = (), loggers: Sequence[Logger] = (), precision: str | None = None
) -> L.Trainer:
    """Instantiate ``cfg`` (the ``trainer`` group) with ``trainer.precision=auto`` resolved.

    Args:
        cfg: the ``trainer`` group.
        callbacks: in the order they are called.
        loggers: none: nothing is logged.
        precision: what ``auto`` means, if not the fastest (an evaluation uses the training run's).

    Raises:
        UserError: Lightning refuses a setting, such as an accelerator that this machine has not.
    """
    quieten_lightning()
    chosen = cfg.precision
    if chosen == "auto":
        chosen = precision or fastest_precision(cfg.accelerator)
    extra: dict[str, Any] = {"precision": chosen, "callbacks": list(callbacks), "logger": list(loggers)}
    if not any(isinstance(callback, Checkpoint) for callback in callbacks):
        extra["enable_checkpointing"] = False
    try:
        trainer: L.Trainer = hydra.utils.instantiate(cfg, **extra)
        _fit_into_the_cluster(trainer)
    except hydra.errors.InstantiationException as error:
        cause = error.__cause__ or error
        if isinstance(cause, (MisconfigurationException, ValueError, TypeError, RuntimeError, ImportError)):
            raise UserError("trainer: " + " ".join(str(cause).split())[:400]) from None
        raise
    if cfg.precision == "auto" and trainer.strategy.root_device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32 for what autocast leaves in fp32
    if str(chosen).startswith("bf16") and trainer.strategy.root_device.type == "cpu" and not cpu_has_bf16():
        print(
            "note: this CPU has no bf16 instructions; trainer.precision=32-true is about three times as fast",
            flush=True,
        )
    return trainer


def _fit_into_the_cluster(trainer: L.Trainer) -> None:
    """Compare devices and nodes with what there is, and what Slurm gave, before the ranks wait for one another.

    Raises:
        UserError: they differ.
    """
    if trainer.strategy.root_device.type == "cpu" and trainer.num_devices > max(2, cores()):
        raise UserError(
            f"trainer.devices={trainer.num_devices}: this machine has {cores()} cores for as many processes at most"
        )
    environment = getattr(trainer.strategy, "cluster_environment", None)
    if environment is not None:
        wanted, tasks = trainer.num_devices * trainer.num_nodes, int(os.environ.get("SLURM_NTASKS", "1"))
        if isinstance(environment, SLURMEnvironment) and tasks != wanted:
            raise UserError(
                f"trainer: Slurm runs {tasks} task(s), trainer.devices and trainer.num_nodes ask for {wanted}\n"
                f"ask for one task a process (--ntasks={wanted}) and start them with srun"
            )
        try:
            environment.validate_settings(num_devices=trainer.num_devices, num_nodes=trainer.num_nodes)
        except ValueError as error:
            raise UserError("trainer: " + " ".join(str(error).split())[:400]) from None


def quieten_lightning() -> None:
    """Leave out Lightning's advertising tips and the warnings of ``_NOT_OURS``."""
    for pattern in _NOT_OURS:
        warnings.filterwarnings("ignore", pattern)
    for name in (
        "pytorch.utilities.rank_zero",
        "pytorch.trainer.connectors.signal_connector",  # SaveOnInterrupt says it
        "fabric.utilities.seed",
        "fabric.utilities.distributed",
    ):
        logging.getLogger(f"lightning.{name}").setLevel(logging.WARNING)


def resume_from(
    cfg: DictConfig, trainer: L.Trainer, data: L.LightningDataModule, model: L.LightningModule
) -> Path | None:
    """The file that ``ckpt`` means, found fit to go on from before anything in the run's folder is touched.

    Args:
        cfg: the whole config. Its ``ckpt`` is a file, a run folder (its ``last.ckpt``), ``last`` for that of the run's
            folder, ``auto`` for that if there is one, or None for a new run; in a job that SLURM has started again,
            that means ``auto``.
        trainer: its precision is compared.
        data: set up; it compares its images and split with those that the run began with.
        model: compares its network.

    Raises:
        UserError: no checkpoint, one that holds weights only, or a run with other images, another split or settings.
    """
    folder, ckpt = Path(cfg.paths.output), cfg.ckpt
    if ckpt == "":
        raise UserError("ckpt= says nothing: name a run's folder or its checkpoints/last.ckpt, or leave it out")
    if ckpt == "auto" or (ckpt is None and slurm_restarts()):
        ckpt = "last" if (folder / "checkpoints" / "last.ckpt").is_file() else None
    if ckpt is None:
        return None
    run = folder if ckpt == "last" else Path(str(ckpt)).expanduser()
    file = run / "checkpoints" / "last.ckpt" if ckpt == "last" or run.is_dir() else run
    if ckpt == "last" and not file.is_file():
        raise UserError(
            f"ckpt=last: {shown(folder)} has no checkpoint\n"
            "name the run's folder: ckpt=RUN, or hydra.run.dir=RUN ckpt=last"
        )
    checkpoint = load_checkpoint(file)
    if "optimizer_states" not in checkpoint:
        raise UserError(f"ckpt: {file} holds weights alone, for evaluate and predict\nresume from last.ckpt beside it.")
    with well_formed(file):
        data.load_state_dict(checkpoint["FishDataModule"])
        model.on_load_checkpoint(checkpoint)
        begun = checkpoint["callbacks"][SameConfig.__name__]["settings"]
        precisions = [{"trainer.precision": str(of)} for of in (checkpoint["precision"], trainer.precision)]
        require_same_steps(begun | precisions[0], settings(cfg) | precisions[1])
        _require_whole_epoch(checkpoint, trainer)
    rank_zero_only(remove_strays)(folder)
    return file


def _require_whole_epoch(checkpoint: dict[str, Any], trainer: L.Trainer) -> None:
    """Refuse to train on where ``trainer.max_steps`` or early stopping ended an epoch: Lightning takes it for whole.

    Raises:
        UserError: with the step.
    """
    step, following = checkpoint["global_step"], checkpoint["FishDataModule"]["next"]
    ended = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"] > following["epoch"]
    stays = trainer.max_steps == step or any(isinstance(callback, EarlyStopping) for callback in trainer.callbacks)  # type: ignore[attr-defined]
    if ended and following["batches"] and not stays:
        raise UserError(
            f"ckpt: the run ended at step {step}, within epoch {following['epoch'] + 1}, and would leave its rest out\n"
            "start another run with more of trainer.max_steps"
        )


def best_checkpoint(trainer: L.Trainer) -> str | None:
    """Path of the best checkpoint of the fit; None (the weights in memory) where the run keeps none."""
    best = next((c for c in trainer.checkpoint_callbacks if isinstance(c, BestCheckpoint)), None)
    return best.best_model_path or None if best else None
