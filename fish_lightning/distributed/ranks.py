"""What the processes of a run exchange, and who starts them."""

import os
from typing import Any, TypeVar

import lightning as L
import torch

from fish_lightning.distributed.cluster import PARENT

T = TypeVar("T")


def gathered(value: T) -> list[T]:
    """Return ``value`` of all processes, in rank order; only this one's where there is no process group."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [value]
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def share_of_step(images: int, device: torch.device) -> torch.Tensor | float:
    """Return the factor on a process's mean loss with which the mean over processes is the mean over the step's images.

    Args:
        images: number of images that this process trains on in this step; all processes call this.
        device: the model's device.

    Returns:
        The factor; 1 without a process group or where all processes have the same number of images.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 1.0
    total = torch.tensor(float(images), device=device)
    torch.distributed.all_reduce(total)
    return images * torch.distributed.get_world_size() / total.clamp(min=1)


def gathered_rows(rows: torch.Tensor) -> torch.Tensor:
    """Return the rows of all processes in the order in which ``KeyedBatches`` divided them, as a new tensor.

    Args:
        rows: (n, ...) rows of this process; ``n`` may differ by one between processes.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return rows.clone()
    world = torch.distributed.get_world_size()
    counts = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(world)]
    torch.distributed.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
    padded = rows.new_zeros(max(int(count) for count in counts), *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in range(world)]
    torch.distributed.all_gather(parts, padded)
    # Image i of the whole batch is image i // world of process i % world.
    return torch.stack(parts, 1).flatten(0, 1)[: sum(int(count) for count in counts)]


def starts_processes(trainer: L.Trainer) -> bool:
    """Return whether Lightning starts the trainer's other ranks, rather than torchrun or Slurm."""
    environment = getattr(trainer.strategy, "cluster_environment", None)
    if trainer.strategy.launcher is None or environment is None:
        return False
    return not environment.creates_processes_externally


def announce_parent(trainer: L.Trainer) -> None:
    """Give the ranks that Lightning will start the id of this process, so that they end when it does."""
    if starts_processes(trainer):
        os.environ[PARENT] = str(os.getpid())
