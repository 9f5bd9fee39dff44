"""The environment variables of Slurm and torchrun. Read while the config is composed: no torch here."""

import os
import subprocess
from collections.abc import Sequence
from typing import Any

#: Environment variable with the id of the parent process, if that is a process of this program.
PARENT = "FISH_LIGHTNING_PARENT"


def is_first_process() -> bool:
    """Return whether this is the first process of its run, according to the environment."""
    ranks = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")
    return all(os.environ.get(name, "0") in ("", "0") for name in ranks)


def is_started_as_tasks() -> bool:
    """Return whether torchrun, or srun with several tasks, has started this program once per process."""
    return "TORCHELASTIC_RUN_ID" in os.environ or ("SLURM_STEP_ID" in os.environ and slurm_tasks() != 1)


def slurm_tasks() -> int:
    """Return the number of tasks of this Slurm step; 1 elsewhere."""
    return int(os.environ.get("SLURM_NTASKS", "1"))


def _slurm_job_id() -> str | None:
    """Return the job id that scontrol accepts; None outside Slurm."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID')}" if array else os.environ.get("SLURM_JOB_ID")


def _slurm_step() -> str | None:
    """Return job and step (``4242.0``) of a process that srun started; None elsewhere."""
    if "SLURM_NTASKS" not in os.environ or os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive"):
        return None  # as Lightning's SLURMEnvironment decides
    step = os.environ.get("SLURM_STEP_ID", "0")
    if int(step) >= 2**32 - 10:  # an interactive step, which may start many runs
        return None
    job = _slurm_job_id()
    return job and f"{job}.{step}"


def slurm_restarts() -> int:
    """Return how often Slurm has restarted this job; 0 elsewhere."""
    return int(os.environ.get("SLURM_RESTART_COUNT") or 0) if _slurm_step() else 0


def requeue() -> str:
    """Put this Slurm job back into the queue.

    Returns:
        The job's id.

    Raises:
        OSError: scontrol cannot be run.
        subprocess.CalledProcessError: scontrol failed.
    """
    job = _slurm_job_id() or ""
    subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, text=True)  # noqa: S603, S607
    return job


def run_name(now: str) -> str:
    """Return the name of a new run's folder: the time, or an id common to the ranks that Slurm or torchrun started.

    A job requeued by Slurm keeps its name, and so finds its checkpoint.
    """
    step = _slurm_step()
    if step is not None:
        return f"slurm-{step}"
    launch = os.environ.get("TORCHELASTIC_RUN_ID", "none")  # "none" where torchrun was given no --rdzv-id
    return now if launch == "none" else f"torchrun-{launch}"


def tasks_per_node(devices: Any) -> int:
    """Return the number of processes per node for ``trainer.devices``."""
    if isinstance(devices, str) and "," in devices:
        devices = devices.strip(",").split(",")
    if isinstance(devices, Sequence) and not isinstance(devices, str):
        return len(devices)
    return 1 if devices == "auto" else max(1, int(devices))
