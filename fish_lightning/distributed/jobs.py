"""Jobs of several processes: each has one folder, one config and one process group, also in a Hydra multirun.

Lightning starts the other ranks of a run by repeating ``sys.argv``. In a multirun that is the whole sweep, in another
folder and with other values from a sampler (Lightning issue 11300). The sweeping process would also keep ``LOCAL_RANK``
and the process group for the next job, and be killed with a failing rank. A job of a multirun for which Lightning would
start processes therefore runs in its own process: its resolved config is written to ``.hydra/job.yaml``, and
``python -m fish_lightning.train --config-name job`` is a single run, whose ``sys.argv`` can be repeated.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_original_cwd
from omegaconf import DictConfig, OmegaConf

from fish_lightning.distributed.cluster import PARENT
from fish_lightning.errors import UserError, in_multirun
from fish_lightning.files import atomic_write, read_summary

#: Seconds that a process has to save its run after the process that started it is gone.
GRACE = 10
#: Windows has no SIGKILL; its SIGTERM ends a process as immediately.
_KILL = getattr(signal, "SIGKILL", signal.SIGTERM)
#: Variables that Lightning and torchrun set for the ranks of a run.
_RANKS = ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK")


def end_with_parent() -> None:
    """End this process soon after its parent, if that is a process of this program.

    A rank waits for a dead one until the process group times out after half an hour, and a killed sweep can be resumed
    only when nothing trains in its folders any more.
    """
    parent = os.environ.get(PARENT)
    if parent is None and in_multirun() and "joblib" in str(HydraConfig.get().launcher.get("_target_")):
        parent = str(os.getppid())  # joblib's worker
    if parent is not None and int(parent) != os.getpid():
        threading.Thread(target=_watch, args=(int(parent),), name="end-with-parent", daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)  # finishes and saves the step, unless it waits for another rank
    time.sleep(GRACE)
    os.kill(os.getpid(), _KILL)


def needs_own_process(cfg: DictConfig) -> bool:
    """Return whether this is a job of a multirun for which Lightning would start processes.

    Raises:
        UserError: a setting of the trainer is invalid, or the job needs several machines.
    """
    if not in_multirun():
        return False
    from fish_lightning.distributed.ranks import starts_processes
    from fish_lightning.training.trainer import build_trainer

    trainer = build_trainer(cfg.trainer)
    if not starts_processes(trainer):
        return False
    if trainer.num_nodes > 1:
        raise UserError(
            f"trainer.num_nodes={trainer.num_nodes}: a sweep over several machines needs hydra/launcher=submitit_slurm"
        )
    return True


def run_in_own_process(cfg: DictConfig) -> float | None:
    """Run the job of a multirun as a single run in a process of its own, and wait for it.

    Args:
        cfg: the job's config.

    Returns:
        The metric named by ``optimized_metric``.

    Raises:
        UserError: the job failed; it has printed its error.
        SystemExit: the job was stopped by a signal.
    """
    folder = Path(cfg.paths.output)
    command = [sys.executable, "-m", "fish_lightning.train", "--config-path", str(folder / ".hydra")]
    with atomic_write(folder / ".hydra" / "job.yaml") as temporary:
        OmegaConf.save(_as_single_run(cfg, folder), temporary)
    environment = {key: value for key, value in os.environ.items() if key not in _RANKS}
    process = subprocess.Popen(  # noqa: S603  # this program itself
        [*command, "--config-name", "job"],
        cwd=get_original_cwd(),
        env=environment | {PARENT: str(os.getpid())},
        start_new_session=True,  # a process group, so that none of its ranks is left behind
    )
    try:
        with _signals_forwarded(process.pid):
            code = process.wait()
    finally:
        _signal_group(process.pid, _KILL)
    if code in (130, 143):
        sys.exit(code)
    if code != 0:
        memory = " (possibly out of memory)" if code == -_KILL else ""
        how = f"was killed by signal {-code}{memory}" if code < 0 else f"exited with code {code}"
        raise UserError(f"job {HydraConfig.get().job.num} {how}; see above")
    stage, _, metric = str(cfg.optimized_metric).partition("/")
    value: float | None = read_summary(folder)[stage].get(metric)
    return value


def _as_single_run(cfg: DictConfig, folder: Path) -> DictConfig:
    """Return the resolved config with what Hydra needs to run it in the existing folder."""
    now = HydraConfig.get()
    resolved = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(resolved, dict)
    resolved["hydra"] = {
        "run": {"dir": str(folder)},
        "output_subdir": None,
        "job": {"name": now.job.name, "chdir": now.job.chdir},
        "job_logging": OmegaConf.to_container(now.job_logging, resolve=True),
    }
    return OmegaConf.create(resolved)


@contextmanager
def _signals_forwarded(group: int) -> Iterator[None]:
    """Forward Ctrl-C and SIGTERM to the job, which saves and stops; Python allows this in the main thread only."""
    former = {}
    if threading.current_thread() is threading.main_thread():

        def forward(number: int, frame: FrameType | None) -> None:
            _signal_group(group, number)

        former = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _signal_group(group: int, number: int) -> None:
    """Signal a process and those that it started; Windows has no groups, and ends the process alone."""
    with suppress(ProcessLookupError, PermissionError):  # it has ended
        getattr(os, "killpg", os.kill)(group, number)
