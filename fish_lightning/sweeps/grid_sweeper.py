"""``hydra/sweeper=basic``: Hydra's own sweeper, and its table where a launcher gives up on a job."""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from fish_lightning.errors import UserError, end_with, first_line
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
        launch = partial(launch_all, self.launcher.launch, lambda: any(folder.glob("*/.hydra")))
        self.launcher.launch = launch  # type: ignore[method-assign]

    def sweep(self, arguments: list[str]) -> Any:
        """Run all jobs; two sweeps in one folder would train over each other's runs."""
        assert self.config is not None
        folder = Path(self.config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with alone_in(folder):
                return super().sweep(arguments)
        except UserError as error:
            end_with(error)


def launch_all(launch: Launch, begun: Callable[[], bool], jobs: Sequence[Sequence[str]], initial_job_idx: int) -> Any:
    """Launch jobs; where the launcher raises the end of one (joblib, submitit, Ray do), say so and go on.

    Args:
        launch: of a Hydra launcher.
        begun: whether there is a job that has begun.
        jobs: the overrides of each.
        initial_job_idx: number of the first.

    Returns:
        What the launcher returned; nothing where it raised.
    """
    try:
        return launch(jobs, initial_job_idx)
    except (HydraException, OmegaConfBaseException):
        raise
    except Exception as error:
        if not begun():
            end_with(UserError(f"hydra/launcher: no job could be started: {type(error).__name__}: {first_line(error)}"))
        print(f"error: {type(error).__name__}: {first_line(error)}", file=sys.stderr, flush=True)
        return []
