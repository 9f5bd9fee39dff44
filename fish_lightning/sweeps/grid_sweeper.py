"""``hydra/sweeper=basic``: Hydra's own sweeper, and its table where a launcher gives up on a job."""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from fish_lightning import compat
from fish_lightning.errors import UserError, end_with, first_line
from fish_lightning.files import shown
from fish_lightning.sweeps.study import sweep_lock

Launch = Callable[[Sequence[Sequence[str]], int], Any]


class GridSweeper(Sweeper):
    """All combinations of the given values, by Hydra's own sweeper; a killed job leaves the others their table.

    Args:
        max_batch_size: jobs that the launcher gets at a time; None: all.
        params: a sweep for each key, besides those on the command line.
    """

    hydra_context: HydraContext
    config: DictConfig

    def __init__(self, max_batch_size: int | None, params: DictConfig | None = None) -> None:
        basic, _ = compat.basic_sweeper()
        self.basic = basic(max_batch_size, params)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Make the launcher (Hydra calls this)."""
        self.hydra_context, self.config = hydra_context, config
        self.basic.setup(hydra_context=hydra_context, task_function=task_function, config=config)
        launcher = self.basic.launcher
        launcher.launch = partial(launch_all, launcher.launch, Path(config.hydra.sweep.dir))

    def sweep(self, arguments: list[str]) -> Any:
        """Run all jobs; two sweeps in one folder would overwrite each other's runs."""
        folder = Path(self.config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with sweep_lock(folder):
                _require_same_sweep(folder, self.config)
                return self.basic.sweep(arguments)
        except UserError as error:
            end_with(error)


def _require_same_sweep(folder: Path, config: DictConfig) -> None:
    """Refuse to run over the jobs of another sweep, whose table would hold both; with ``ckpt=auto`` each job does.

    Raises:
        UserError: the folder's ``multirun.yaml`` says that it holds one.
    """
    if OmegaConf.select(config, "ckpt") == "auto":
        return
    try:
        begun = OmegaConf.load(folder / "multirun.yaml")
    except (OSError, YAMLError):
        return  # none, or one that was stopped before it began
    was, now = (_words(of) for of in (begun, config))
    if was != now:
        parts = [f"with {word}" for word in sorted(was - now)] + [f"without {word}" for word in sorted(now - was)]
        raise UserError(
            f"hydra.sweep.dir: {shown(folder)} holds another sweep: {'; '.join(parts[:4])}\n"
            "choose another folder; with ckpt=auto jobs may be added to that one"
        )


def _words(config: Any) -> set[str]:
    """What a sweep was started with, but for ``ckpt``."""
    params = OmegaConf.select(config, "hydra.sweeper.params") or {}
    words = {*OmegaConf.select(config, "hydra.overrides.task"), *(f"{key}={value}" for key, value in params.items())}
    return {word for word in words if not word.startswith("ckpt=")}


def launch_all(launch: Launch, folder: Path, jobs: Sequence[Sequence[str]], initial_job_idx: int) -> Any:
    """Launch jobs; where the launcher raises the end of one (joblib, submitit, Ray do), say so and go on.

    Args:
        launch: of a Hydra launcher.
        folder: of the sweep.
        jobs: the overrides of each.
        initial_job_idx: number of the first.

    Returns:
        What the launcher returned; nothing where it raised.
    """

    def begun() -> dict[Path, int]:
        return {file: file.stat().st_mtime_ns for file in folder.glob("*/.hydra/overrides.yaml")}

    before = begun()
    try:
        return launch(jobs, initial_job_idx)
    except (HydraException, OmegaConfBaseException):
        raise
    except Exception as error:
        if begun() == before:
            end_with(UserError(f"hydra/launcher: no job could be started: {type(error).__name__}: {first_line(error)}"))
        print(f"error: {type(error).__name__}: {first_line(error)}", file=sys.stderr, flush=True)
        return []
