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
    folder, ckpt = Path(cfg.paths.output), cfg.ckpt
    if ckpt == "":
        raise UserError("ckpt= is empty: name a run's folder or its checkpoints/last.ckpt, or leave it out")
    if resumes_if_possible(ckpt):
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
    return file


def require_resumable(file: Path, cfg: DictConfig, trainer: L.Trainer, data: FishDataModule) -> None:
    """Check that a run can be resumed exactly, before anything in its folder is changed.

    Args:
        file: the checkpoint.
        cfg: the whole config.
        trainer: of the resumed run; its precision and number of processes are compared.
        data: of the resumed run; its images and their split are compared.

    Raises:
        UserError: the file is no checkpoint or contains weights only, or settings, images or the split differ.
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
    constant = _name(then.get("scheduler._target_")) == "constant"
    compared = (*_OF_A_STEP, *(() if constant else _OF_THE_SCHEDULE))

    def decides(key: str) -> bool:
        return key not in _NOT_OF_A_STEP and any(f"{key}.".startswith(f"{of}.") for of in compared)

    def same(key: str) -> bool:
        one, other = then.get(key), now.get(key)
        return one == other or (key.endswith("._target_") and _name(one) == _name(other))

    differing = [key for key in {**then, **now} if decides(key) and not same(key)]
    replaced = tuple(key.removesuffix("_target_") for key in differing if key.endswith("._target_"))
    # The other settings of another optimizer differ too, and need not be named.
    differing = [key for key in differing if key.endswith("._target_") or not key.startswith(replaced)]

    def difference(key: str) -> str:
        values = [then.get(key), now.get(key)]
        if any(isinstance(value, list | dict) for value in values):
            return f"another {key}"
        if key.endswith("._target_"):
            values = [None if value is None else _name(value) for value in values]
        was, now_is = map(as_typed, values)
        return f"{key.removesuffix('._target_')}={was}, not {now_is}"

    return [difference(key) for key in differing]


def _name(target: Any) -> str:
    """Return the name of a ``_target_`` without its module, which may be renamed between versions."""
    return str(target).rpartition(".")[2]


def _require_same_files(data: FishDataModule, began: dict[str, Any], file: Path) -> None:
    """Check that no image has been replaced under its name since the run began; say which were written again.

    Raises:
        UserError: files have another size than then.
    """
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
    """Check that the run did not end within an epoch, which Lightning counts as complete.

    Raises:
        UserError: ``trainer.max_steps`` ended it there, and the resumed run would go further.
    """
    step, following = checkpoint["global_step"], checkpoint["FishDataModule"]["next"]
    ended = compat.epochs_processed(checkpoint) > following["epoch"]
    stays = trainer.max_steps == step or any(isinstance(callback, EarlyStopping) for callback in trainer.callbacks)  # type: ignore[attr-defined]
    if ended and following["batches"] and not stays:
        raise UserError(
            f"ckpt: the run ended at step {step}, within epoch {following['epoch'] + 1}; resuming would skip its end\n"
            "start a new run with a larger trainer.max_steps"
        )
