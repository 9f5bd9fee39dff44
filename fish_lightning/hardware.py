"""Defaults for this machine: loader workers, number format, fused optimizers. torch is imported only when asked."""

import os
from pathlib import Path


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


def uses_cuda(accelerator: str) -> bool:
    """Return whether this accelerator means a CUDA GPU here."""
    if accelerator not in ("auto", "gpu", "cuda"):
        return False
    import torch

    return torch.cuda.is_available()


def fused(precision: str) -> bool:
    """Whether optimizers compute a step in one kernel: a third of the time on a CPU, and no waiting between on a GPU.

    With fp16 the gradients are scaled, and Lightning does not clip them for an optimizer that takes the scale away.
    """
    return str(precision) not in ("16-mixed", "16")
