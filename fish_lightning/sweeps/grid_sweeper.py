"""``hydra/sweeper=basic``: Hydra's own sweeper, and its table where a launcher gives up on a job."""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from fish_lightning.errors import UserError, end_with, first_line
from fish_lightning.files import shown
from fish_lightning.sweeps.study import alone_in

Plugins.instance()  # finds Hydra's plugins by running their modules, once: the class below is the one that stays

# isort: split
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper  # noqa: E402 - only now

Launch = Callable[[Sequence[Sequence[str]], int], Any]


class GridSweeper(BasicSweeper):
    """All combinations of the values given, as Hydra's; a job that was killed leaves the others their table."""

    def setup(self, *, config: DictConfig, **rest: Any) -> None:
        """Make the launcher (Hydra calls this)."""
        super().setup(config=config, **rest)
        assert self.launcher is not None
        folder = Path(config.hydra.sweep.dir)
        launch = partial(launch_all, self.launcher.launch, folder)
        self.launcher.launch = launch  # type: ignore[method-assign]

    def sweep(self, arguments: list[str]) -> Any:
        """Run all jobs; two sweeps in one folder would train over each other's runs."""
        assert self.config is not None
        folder = Path(self.config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with alone_in(folder):
                _require_same_sweep(folder, self.config)
                return super().sweep(arguments)
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
