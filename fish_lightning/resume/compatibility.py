"""Whether a run is resumed: which checkpoint ``ckpt`` names, and whether it may be resumed with these settings.

A resumed run continues as if it had never stopped: all settings that affect a training step, the images and their split
must be the same. All differences are reported together, before training images are decoded. A finished run counts as
this run only if all settings that affect its results are the same.
"""

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig

from fish_lightning import compat
from fish_lightning.data.datamodule import FishDataModule
from fish_lightning.distributed.same_config import SameConfig, fingerprint, settings
from fish_lightning.errors import UserError
from fish_lightning.files import override, read_summary, remove_strays, run_of, shown
from fish_lightning.models.checkpoint import load_checkpoint, reporting_corruption
from fish_lightning.models.checkpoint_schema import require_well_formed
from fish_lightning.names import listed
from fish_lightning.resume.folders import resumes_if_possible
from fish_lightning.run_log import say
from fish_lightning.settings.rules import as_typed
from fish_lightning.training.trainer import callback_of

#: Settings, and groups of settings, that affect a training step; :meth:`FishDataModule.differences` has the batches.
_OF_A_STEP = (
    *("seed", "data.balance", "data.backgrounds", "data.resident", "data.on_error", "on_nan"),
    *("transforms", "model", "optimizer", "scheduler"),
    *("callbacks.progressive", "callbacks.mix", "callbacks.average", "callbacks.freeze"),
    *("trainer.accumulate_grad_batches", "trainer.gradient_clip_val", "trainer.gradient_clip_algorithm"),
    *("trainer.precision", "trainer.deterministic", "trainer.limit_train_batches", "trainer.sync_batchnorm"),
)
#: Exceptions: the initial weights, and how fast a step is computed.
_NOT_OF_A_STEP = ("model.weights", "model.compile")
#: The length of a schedule, besides the number of images.
_OF_THE_SCHEDULE = ("trainer.max_epochs", "trainer.max_steps")


def finished(folder: Path, cfg: DictConfig) -> dict[str, Any] | None:
    """Return the ``summary.json`` of a finished run in this folder, or None.

    Raises:
        UserError: the run has other settings.
    """
    summary = read_summary(folder)
    if not summary:
        return None
    if summary.get("config") != fingerprint(settings(cfg)):
        raise UserError(
            f"ckpt=auto: {shown(folder)} contains a finished run with other settings\nchoose another folder"
        )
    print(f"already finished: {shown(folder)}", flush=True)
    return summary


def checkpoint_to_resume(cfg: DictConfig) -> Path | None:
    """Return the checkpoint that ``ckpt`` names; None for a new run.

    Args:
        cfg: the whole config. ``ckpt`` is a file, a run folder (its ``last.ckpt``), ``last`` (that of this run's
            folder), ``auto`` (the same if it exists), or None, which means ``auto`` in a job restarted by Slurm.

    Raises:
        UserError: there is no such checkpoint.
    """
    ckpt, last = cfg.ckpt, Path(cfg.paths.output, "checkpoints", "last.ckpt")
    if ckpt == "":
        raise UserError("ckpt= is empty: name a run's folder or its checkpoints/last.ckpt, or leave it out")
    if ckpt is None or ckpt == "auto":
        return last if resumes_if_possible(ckpt) and last.is_file() else None
    if ckpt == "last" and not last.is_file():
        raise UserError(
            f"ckpt=last: {shown(cfg.paths.output)} has no checkpoint\n"
            "name the run's folder: ckpt=RUN, or hydra.run.dir=RUN ckpt=last"
        )
    run = last.parents[1] if ckpt == "last" else Path(str(ckpt)).expanduser()
    return run / "checkpoints" / "last.ckpt" if run.is_dir() else run


def require_resumable(file: Path, cfg: DictConfig, trainer: L.Trainer, data: FishDataModule) -> None:
    """Check that a run can be resumed exactly, before anything in its folder is changed.

    Args:
        file: the checkpoint.
        cfg: the whole config.
        trainer: the resumed run's trainer, whose precision and number of processes are compared.
        data: the resumed run's data module, whose images and split are compared.

    Raises:
        UserError: the file is not a checkpoint or contains weights only, or settings, images or the split differ.
    """
    checkpoint = load_checkpoint(file)
    if "optimizer_states" not in checkpoint:
        raise UserError(
            f"ckpt: {file} contains weights only, for evaluate and predict\nresume from last.ckpt in the same folder"
        )
    require_well_formed(checkpoint, file, resumable=True)
    with reporting_corruption(file):
        began = checkpoint["FishDataModule"]
        then: dict[str, Any] = checkpoint["callbacks"][SameConfig.__name__]["settings"]
        then = then | {"trainer.precision": str(checkpoint["precision"])}
        now = settings(cfg) | {"trainer.precision": str(trainer.precision)}
        found = [*_setting_differences(then, now), *data.differences(began, trainer.world_size)]
        differences = list(dict.fromkeys(found))  # the seed is among both
        if differences:
            more = f"; and {len(differences) - 4} more" if len(differences) > 4 else ""
            raise UserError(
                f"ckpt: the run was started with {'; '.join(differences[:4])}{more}\n"
                "resume it with the settings it was started with (.hydra/overrides.yaml in its folder):\n"
                f"python -m fish_lightning.train {override('ckpt', run_of(file))}"
            )
        _require_same_files(data, began, file)
        _require_complete_epoch(checkpoint, trainer)
    rank_zero_only(remove_strays)(Path(cfg.paths.output))


def _setting_differences(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return the settings of a step that differ, each as ``optimizer.lr=0.01, not 0.1``."""
    constant = _value(then, "scheduler._target_") == "constant"
    compared = tuple(f"{of}." for of in (*_OF_A_STEP, *(() if constant else _OF_THE_SCHEDULE)))
    keys = [key for key in {**then, **now} if f"{key}.".startswith(compared) and key not in _NOT_OF_A_STEP]
    pairs = {key: (_value(then, key), _value(now, key)) for key in keys}
    # A run that began before a setting existed ran without it.
    pairs = {key: pair for key, pair in pairs.items() if key in then or pair[1] is not False}
    differing = {key: (was, is_now) for key, (was, is_now) in pairs.items() if was != is_now}
    # The other settings of another optimizer differ too, and need not be named.
    replaced = tuple(key.removesuffix("_target_") for key in differing if key.endswith("._target_"))
    named = {key: pair for key, pair in differing.items() if key.endswith("._target_") or not key.startswith(replaced)}

    def difference(key: str, was: Any, is_now: Any) -> str:
        if isinstance(was, list | dict) or isinstance(is_now, list | dict):
            return f"another {key}"
        return f"{key.removesuffix('._target_')}={as_typed(was)}, not {as_typed(is_now)}"

    return [difference(key, was, is_now) for key, (was, is_now) in named.items()]


def _value(of: dict[str, Any], key: str) -> Any:
    """Return a setting; for a ``_target_``, the name without its module, which may be renamed between versions."""
    value = of.get(key)
    return value.rpartition(".")[2] if key.endswith("._target_") and isinstance(value, str) else value


def _require_same_files(data: FishDataModule, began: dict[str, Any], file: Path) -> None:
    """Refuse images whose file size has changed since the run began; print which were rewritten."""
    changed, written = data.changed_images(began)
    if changed:
        raise UserError(
            f"ckpt: {_images(len(changed))} changed since the run was started: {listed(changed, 4)}\n"
            f"restore the originals, or start a new run with its weights: {override('model.weights', file)}"
        )
    if written:
        say(f"note: {_images(len(written))} been rewritten since the run was started: {listed(written, 4)}")


def _images(count: int) -> str:
    return "1 image has" if count == 1 else f"{count:,} images have"


def _require_complete_epoch(checkpoint: dict[str, Any], trainer: L.Trainer) -> None:
    """Refuse to go further than a ``trainer.max_steps`` within an epoch, which Lightning counts as complete."""
    step, following = checkpoint["global_step"], checkpoint["FishDataModule"]["next"]
    ended = compat.epochs_processed(checkpoint) > following["epoch"]
    stays = trainer.max_steps == step or callback_of(trainer, EarlyStopping)
    if ended and following["batches"] and not stays:
        raise UserError(
            f"ckpt: the run ended at step {step}, within epoch {following['epoch'] + 1}; resuming would skip its end\n"
            "start a new run with a larger trainer.max_steps"
        )
