"""Jobs of several processes: one folder, one config, one fresh process group each, also inside a Hydra multirun.

Lightning starts the other ranks of a run by repeating ``sys.argv``. In a multirun that is the whole sweep again, in
another folder, with a sampler's other draws (Lightning issue 11300); and the process that sweeps keeps ``LOCAL_RANK``
and the process group for the next job, and is killed with a rank that dies. So a job of a multirun for which Lightning
would start processes runs in a process of its own: its config, resolved, is written to ``.hydra/job.yaml`` and
``python -m fish_lightning.train --config-name job`` is a plain run, whose ``sys.argv`` can be repeated. What it leaves
in its environment and its process group ends with it, and so does a death in it.
"""

import json
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

from fish_lightning.distributed.cluster import PARENT, is_first_process
from fish_lightning.errors import UserError, in_multirun
from fish_lightning.files import locked, shown, whole_file

#: Seconds that a process has to save its run when the one that started it is gone.
GRACE = 10
#: What Lightning, torchrun and Slurm say a process is one of many by.
_RANKS = ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK")


def end_with_parent() -> None:
    """End this process soon after the one that started it, where that is another process of this program.

    A rank waits for a dead one as long as the process group's timeout, half an hour; and a sweep that was killed can
    go on only when nothing trains in its folders any more.
    """
    parent = os.environ.get(PARENT)
    if parent is None and in_multirun() and "joblib" in str(HydraConfig.get().launcher.get("_target_")):
        parent = str(os.getppid())  # a worker of joblib's
    if parent is not None and int(parent) != os.getpid():
        threading.Thread(target=_watch, args=(int(parent),), name="end-with-parent", daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)  # the step is finished and saved, if no other rank is waited for
    time.sleep(GRACE)
    os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def run_folder_lock(cfg: DictConfig) -> Iterator[None]:
    """Keep other programs out of a run's folder while it trains there: they wait, and find what it has left.

    A sweep that was killed can leave a job running (on a cluster, under submitit); started again, it must not train in
    that job's folder beside it. Of several processes of a run the first one holds the lock.
    """
    if not is_first_process():
        yield
        return
    folder = Path(cfg.paths.output)
    with locked(folder / ".hydra" / "lock", f"waiting for another program that trains in {shown(folder)}"):
        yield


def needs_own_process(cfg: DictConfig) -> bool:
    """Whether this is a job of a multirun for which Lightning would start processes.

    Raises:
        UserError: as :func:`fish_lightning.training.trainer.build_trainer`; or it would need other machines.
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
    """Run the job of a multirun as a plain run in a process of its own, and wait for it and all that it started.

    Args:
        cfg: the job's config.

    Returns:
        The metric named by ``optimized_metric``.

    Raises:
        UserError: it ended with an error, which it has shown.
        SystemExit: it was stopped by a signal.
    """
    folder = Path(cfg.paths.output)
    command = [sys.executable, "-m", "fish_lightning.train", "--config-path", str(folder / ".hydra")]
    with whole_file(folder / ".hydra" / "job.yaml") as temporary:
        OmegaConf.save(_as_plain_run(cfg, folder), temporary)
    environment = {key: value for key, value in os.environ.items() if key not in _RANKS}
    process = subprocess.Popen(  # noqa: S603  # this program itself
        [*command, "--config-name", "job"],
        cwd=get_original_cwd(),
        env=environment | {PARENT: str(os.getpid())},
        start_new_session=True,  # a group of its own, so that no rank of it can be left over
    )
    try:
        with _signals_passed_on(process.pid):
            code = process.wait()
    finally:
        _signal_group(process.pid, signal.SIGKILL)
    if code in (130, 143):
        sys.exit(code)
    if code != 0:
        how = f"was ended by signal {-code} (9: possibly out of memory)" if code < 0 else f"ended with exit code {code}"
        raise UserError(f"job {HydraConfig.get().job.num}, a process of its own, {how}; see above")
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    stage, _, metric = str(cfg.optimized_metric).partition("/")
    value: float | None = summary[stage].get(metric)
    return value


def _as_plain_run(cfg: DictConfig, folder: Path) -> DictConfig:
    """The config with everything resolved, and what Hydra needs to run it in the folder that is there already."""
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
def _signals_passed_on(group: int) -> Iterator[None]:
    """Ctrl-C and SIGTERM go to the job, which saves and stops; outside the main thread Python does not allow it."""
    former = {}
    if threading.current_thread() is threading.main_thread():

        def pass_on(number: int, frame: FrameType | None) -> None:
            _signal_group(group, number)

        former = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _signal_group(group: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, number)
