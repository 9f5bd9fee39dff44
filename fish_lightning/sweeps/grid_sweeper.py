"""``hydra/sweeper=basic``: Hydra's grid sweeper, which writes its table also if a job is killed."""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from fish_lightning import compat
from fish_lightning.errors import UserError, end_with, first_line
from fish_lightning.files import shown
from fish_lightning.resume.folders import holds_run
from fish_lightning.sweeps.study import sweep_lock

BasicSweeper: Any = compat.basic_sweeper()[0]
Launch = Callable[[Sequence[Sequence[str]], int], Any]


class GridSweeper(BasicSweeper):  # type: ignore[misc]
    """Hydra's own sweeper, which runs all combinations of the given values; its other jobs survive a killed one.

    Args:
        max_batch_size: number of jobs per launch; None: all.
        params: sweeps by key, besides those on the command line.
    """

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Create the launcher (called by Hydra)."""
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        compat.wrap_launch(self, lambda launch: partial(launch_all, launch, Path(config.hydra.sweep.dir)))

    def sweep(self, arguments: list[str]) -> Any:
        """Run all jobs, with the folder locked: two sweeps in it would overwrite each other's runs."""
        folder = Path(self.config.hydra.sweep.dir)
        try:
            with sweep_lock(folder):
                _require_same_sweep(folder, self.config)
                return super().sweep(arguments)
        except UserError as error:
            end_with(error)


def _require_same_sweep(folder: Path, config: DictConfig) -> None:
    """Check that the folder does not contain another sweep; with ``ckpt=auto`` each job checks its own folder.

    Raises:
        UserError: ``multirun.yaml`` in the folder has other settings.
    """
    if OmegaConf.select(config, "ckpt") == "auto":
        return
    try:
        previous = OmegaConf.load(folder / "multirun.yaml")
    except (OSError, YAMLError):
        return  # missing, or cut off by a kill
    then, now = (_settings(of) for of in (previous, config))
    if then != now:
        parts = [f"with {word}" for word in sorted(then - now)] + [f"without {word}" for word in sorted(now - then)]
        raise UserError(
            f"hydra.sweep.dir: {shown(folder)} contains another sweep: {'; '.join(parts[:4])}\n"
            "choose another folder, or add jobs to that sweep with ckpt=auto"
        )
    if any(map(holds_run, folder.iterdir())):
        raise UserError(
            f"hydra.sweep.dir: {shown(folder)} already contains this sweep\n"
            "choose another folder, or complete that sweep with ckpt=auto"
        )


def _settings(config: Any) -> set[str]:
    """Return the settings that a sweep was started with, except ``ckpt``."""
    params = OmegaConf.select(config, "hydra.sweeper.params") or {}
    given = {*OmegaConf.select(config, "hydra.overrides.task"), *(f"{key}={value}" for key, value in params.items())}
    return {setting for setting in given if not setting.startswith("ckpt=")}


def launch_all(launch: Launch, folder: Path, jobs: Sequence[Sequence[str]], initial_job_idx: int) -> Any:
    """Launch jobs; if the launcher raises because a job died (joblib, submitit and Ray do), print the error.

    Args:
        launch: method of a Hydra launcher.
        folder: folder of the sweep.
        jobs: the overrides of each job.
        initial_job_idx: number of the first job.

    Returns:
        What the launcher returned; nothing if it raised.
    """

    def started() -> dict[Path, int]:
        return {file: file.stat().st_mtime_ns for file in folder.glob("*/.hydra/overrides.yaml")}

    before = started()
    try:
        return launch(jobs, initial_job_idx)
    except (HydraException, OmegaConfBaseException):
        raise
    except Exception as error:
        if started() == before:
            end_with(UserError(f"hydra/launcher: no job could be started: {type(error).__name__}: {first_line(error)}"))
        print(f"error: {type(error).__name__}: {first_line(error)}", file=sys.stderr, flush=True)
        return []
