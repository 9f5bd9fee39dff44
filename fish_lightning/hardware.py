"""Defaults for this machine: loader workers, precision, fused optimizers. torch is imported only where needed."""

import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from fish_lightning.errors import UserError

T = TypeVar("T")
R = TypeVar("R")

#: Items submitted to threads at a time.
BLOCK = 1024


def cores() -> int:
    """Return the number of CPU cores that this process may use (its affinity, not the machine's count)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


@contextmanager
def threads() -> Iterator[ThreadPoolExecutor]:
    """Provide threads of one core each: OpenCV releases the GIL, and its own threads would compete for the cores."""
    import cv2

    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    pool = ThreadPoolExecutor(cores())
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C waits for running tasks only
        cv2.setNumThreads(before)


def in_threads(task: Callable[[T], R], items: Sequence[T], desc: str, unit: str = "image") -> Iterator[R]:
    """Yield what ``task`` returns for each item, in order, from :func:`threads`; a terminal shows the progress.

    At most ``BLOCK`` results wait to be used.
    """
    from tqdm import tqdm

    with threads() as pool, tqdm(total=len(items), desc=desc, unit=unit, disable=None) as bar:
        for start in range(0, len(items), BLOCK):
            for result in pool.map(task, items[start : start + BLOCK]):
                bar.update()
                yield result


def default_workers(accelerator: str, cache: str) -> int:
    """Return the number of loader workers: one per core, at most 8, for a GPU; one per eight cores on a CPU.

    Training on a CPU needs the cores itself: two of them train ResNet-34 on 50 images a second (160x240, bf16), and
    an image from the cache takes 0.3 ms, less than a worker would take away. Without the cache decoding takes 20 times
    that, and has one worker.
    """
    if _device(accelerator) == "cpu":
        return max(0 if cache != "off" else 1, cores() // 8)
    return min(8, cores())


def busy_note(accelerator: str) -> str | None:
    """Return what to set if other programs use the cores on which this one is to train with several threads.

    The threads of a step wait for the slowest of them: on two busy cores two took 87 s an epoch, and one 3 s.
    """
    import torch

    threads = torch.get_num_threads()
    if not hasattr(os, "getloadavg") or threads == 1 or _device(accelerator) != "cpu":
        return None
    load = os.getloadavg()[0]  # of the minute before this program began
    if load + threads <= cores() * 1.5:
        return None
    return (
        f"note: other programs use this machine (load {load:.1f}, {cores()} cores): {threads} threads would wait for "
        "one another; set OMP_NUM_THREADS=1"
    )


def _device(accelerator: str) -> str:
    """Return the device type of an accelerator on this machine: ``cuda``, ``mps``, ``cpu`` …."""
    if accelerator not in ("auto", "gpu", "cuda"):
        return accelerator
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def fastest_precision(accelerator: str) -> str:
    """Return what ``trainer.precision=auto`` means on this machine.

    ``"bf16-mixed"`` on a GPU with native support and on a CPU with AVX512-BF16 or AMX (2.6 times as fast as fp32; on
    other CPUs a third as fast), else ``"32-true"``.
    """
    import torch

    device = _device(accelerator)
    if device == "cuda":
        return "bf16-mixed" if torch.cuda.get_device_capability() >= (8, 0) else "32-true"
    return "bf16-mixed" if device == "cpu" and cpu_has_bf16() else "32-true"


def cpu_has_bf16() -> bool:
    """Return whether this CPU multiplies bf16 in hardware."""
    try:
        with Path("/proc/cpuinfo").open(encoding="ascii", errors="ignore") as stream:
            flags = next((line for line in stream if line.startswith("flags")), "")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def uses_cuda(accelerator: str) -> bool:
    """Return whether this accelerator is a CUDA GPU on this machine."""
    return _device(accelerator) == "cuda"


def memory() -> float:
    """Return the memory of this machine, or of its container, in bytes; infinite where the system does not tell."""
    if not hasattr(os, "sysconf"):  # Windows
        return math.inf
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        return min(physical, int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    except (OSError, ValueError):  # "max": no limit
        return physical


def peak_memory(cuda: bool) -> int:
    """Return the most memory that torch has reserved on the GPU, or that this process has had, in bytes.

    Raises:
        UserError: this is Windows, and there is no GPU.
    """
    if cuda:
        import torch

        return torch.cuda.max_memory_reserved()
    try:
        import resource
    except ModuleNotFoundError:
        raise UserError("the memory that a batch takes on a CPU cannot be measured on Windows: use a GPU") from None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def fused(precision: str) -> bool:
    """Return whether optimizers are fused, one kernel a step: a third of the time on a CPU, one launch on a GPU.

    Not with fp16: Lightning refuses to clip scaled gradients for an optimizer that unscales them in its step.
    """
    return str(precision) not in ("16-mixed", "16")
