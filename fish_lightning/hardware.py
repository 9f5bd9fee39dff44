"""Defaults that suit the machine: worker count and number format. Resolvers for the YAML, no torch at import."""

import os
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf


def cores() -> int:
    """Number of CPU cores this process may run on (its affinity, not the machine's count)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def default_workers(accelerator: str, cache: str) -> int:
    """Loader workers: one a core, at most 8, for a GPU; on a CPU one for each eight cores, since arithmetic needs them.

    Two cores train ResNet-34 on 50 images a second (160x240, bf16) and wait for one another at every operation. An
    image from the cache costs one of them 0.3 ms: less than a worker that takes a core from the other. Decoding costs
    20 times that, and has a worker.
    """
    if _trains_on_cpu(accelerator):
        return max(0 if cache != "off" else 1, cores() // 8)
    return min(8, cores())


def _trains_on_cpu(accelerator: str) -> bool:
    if accelerator not in ("auto", "gpu", "cuda"):
        return accelerator == "cpu"
    import torch

    return not (torch.cuda.is_available() or torch.backends.mps.is_available())


def fastest_precision(accelerator: str) -> str:
    """What ``trainer.precision=auto`` means here.

    Returns:
        ``"bf16-mixed"`` on a GPU that computes it natively or a CPU with AVX512-BF16 or AMX (2.6 times fp32 there;
        emulated elsewhere at a third of fp32's speed), else ``"32-true"``.
    """
    import torch

    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.get_device_capability() >= (8, 0) else "32-true"
    if accelerator in ("gpu", "cuda", "mps") or (accelerator == "auto" and torch.backends.mps.is_available()):
        return "32-true"
    return "bf16-mixed" if cpu_has_bf16() else "32-true"


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bf16 in hardware."""
    try:
        with Path("/proc/cpuinfo").open(encoding="ascii", errors="ignore") as stream:
            flags = next((line for line in stream if line.startswith("flags")), "")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def _uses_cuda(accelerator: str) -> bool:
    if accelerator not in ("auto", "gpu", "cuda"):
        return False
    import torch

    return torch.cuda.is_available()


def _fused(precision: str) -> bool:
    """Whether optimizers compute a step in one kernel: a third of the time on a CPU, and no waiting between on a GPU.

    With fp16 the gradients are scaled, and Lightning does not clip them for an optimizer that takes the scale away.
    """
    return str(precision) not in ("16-mixed", "16")


def _slurm_job() -> str | None:
    """Number of the SLURM job and of its step (``4242.0``), where srun started this process; None elsewhere."""
    environment = os.environ
    if "SLURM_NTASKS" not in environment or environment.get("SLURM_JOB_NAME") in ("bash", "interactive"):
        return None  # as Lightning tells it
    step = environment.get("SLURM_STEP_ID", "0")
    if int(step) >= 2**32 - 10:  # shells and the like, which start many runs
        return None
    array = environment.get("SLURM_ARRAY_JOB_ID")
    job = f"{array}_{environment.get('SLURM_ARRAY_TASK_ID')}" if array else environment.get("SLURM_JOB_ID")
    return job and f"{job}.{step}"


def slurm_restarts() -> int:
    """How often SLURM has started this job again."""
    return int(os.environ.get("SLURM_RESTART_COUNT") or 0) if _slurm_job() else 0


def _run_folder(ckpt: str | None, new: str) -> str:
    """The folder of the run that ``ckpt`` belongs to, or ``new`` for a run that starts."""
    if ckpt in (None, "", "last", "auto"):
        return new
    path = Path(str(ckpt))
    if path.is_dir():
        return str(path) if (path / "checkpoints" / "last.ckpt").is_file() else new
    # Hydra writes into the folder before the checkpoint is looked at: a file that cannot be one leaves the run alone.
    resumable = path.parent.name == "checkpoints" and path.name != "best.ckpt" and zipfile.is_zipfile(path)
    return str(path.parent.parent) if resumable else new


def _config_folder(ckpt: str | None, time: str) -> str:
    """Where Hydra writes the config, before the run can refuse it: a resumed run keeps that of its beginning."""
    return ".hydra" if ckpt in (None, "auto") else f".hydra/resumed-{time}"


def _run_name(now: str) -> str:
    """Name of a new run's folder: the time, or what the ranks that Slurm or torchrun started have in common.

    A job that Slurm requeues keeps its name, and so finds its checkpoint.
    """
    job = _slurm_job()
    if job is not None:
        return f"slurm-{job}"
    launch = os.environ.get("TORCHELASTIC_RUN_ID", "none")  # "none" where torchrun was given no --rdzv-id
    return now if launch == "none" else f"torchrun-{launch}"


def _tasks(devices: Any) -> int:
    """How many processes a node gets for ``trainer.devices``."""
    if isinstance(devices, str) and "," in devices:
        devices = devices.strip(",").split(",")
    if isinstance(devices, Sequence) and not isinstance(devices, str):
        return len(devices)
    return 1 if devices == "auto" else max(1, int(devices))


def register_resolvers() -> None:
    """Make what the YAML calls known to it: ``${workers:…}``, ``${run_folder:…}`` and their like."""
    OmegaConf.register_new_resolver("config_folder", _config_folder, replace=True)
    OmegaConf.register_new_resolver("run_name", _run_name, replace=True)
    OmegaConf.register_new_resolver("tasks", _tasks, replace=True)
    OmegaConf.register_new_resolver("run_folder", _run_folder, replace=True)
    OmegaConf.register_new_resolver("fused", _fused, replace=True)
    OmegaConf.register_new_resolver("uses_cuda", _uses_cuda, replace=True)
    OmegaConf.register_new_resolver("workers", default_workers, replace=True)
    OmegaConf.register_new_resolver("on_a_terminal", sys.stdout.isatty, replace=True)
