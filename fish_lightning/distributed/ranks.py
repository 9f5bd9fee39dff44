"""What the processes of a run share: gathered values and one config."""

import os
from typing import Any, TypeVar

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig

from fish_lightning.distributed.cluster import PARENT
from fish_lightning.distributed.same_config import fingerprint, settings
from fish_lightning.errors import UserError

T = TypeVar("T")


def gathered(value: T) -> list[T]:
    """Return ``value`` of all processes, in rank order; only this one's where there is no process group."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [value]
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def share_of_step(images: int, device: torch.device) -> torch.Tensor | float:
    """Return the factor on a process's mean loss that makes the mean over processes that over the step's images.

    Args:
        images: number that this process trains on in this step; all processes call this.
        device: of the model.

    Returns:
        1 without a process group or where all processes have as many images.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 1.0
    total = torch.tensor(float(images), device=device)
    torch.distributed.all_reduce(total)
    return images * torch.distributed.get_world_size() / total.clamp(min=1)


def gathered_rows(rows: torch.Tensor) -> torch.Tensor:
    """Return the rows of all processes in the order in which ``KeyedBatches`` divided them, as a new tensor.

    Args:
        rows: (n, ...) of this process; ``n`` may differ by one between processes.
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


class SameConfig(Callback):
    """Compares a hash of the config across all processes and ends the run if it differs.

    No curve shows that ranks train with different hyperparameters (lightning-hydra-template issue 393).

    Args:
        cfg: the whole config of this process.
    """

    def __init__(self, cfg: DictConfig) -> None:
        self.settings = settings(cfg)
        self.hash = fingerprint(self.settings)

    def state_dict(self) -> dict[str, Any]:
        """Return the settings, which a resumed run compares (:mod:`fish_lightning.resume.compatibility`)."""
        return {"settings": self.settings}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Compare, as soon as there is a process group.

        Raises:
            UserError: the configs differ, or a split has fewer images than there are processes.
        """
        if trainer.world_size == 1:
            return
        if len(set(gathered(self.hash))) > 1:
            first, *others = gathered(self.settings)
            named = {key for other in others for key in other.keys() | first.keys() if other.get(key) != first.get(key)}
            shown = ", ".join(f"{key} ({self._values(key, [first, *others])})" for key in sorted(named)[:3])
            raise UserError(f"the processes of this run have different configs: {shown}")
        counts = trainer.datamodule.catalog.counts()  # type: ignore[attr-defined]
        for split in ("train", "val", "test"):
            if 0 < counts[split] < trainer.world_size:
                raise UserError(
                    f"{counts[split]} {split} images for {trainer.world_size} processes: each needs at least one\n"
                    "use fewer processes: trainer.devices, trainer.num_nodes"
                )

    @staticmethod
    def _values(key: str, configs: list[dict[str, Any]]) -> str:
        return " / ".join(dict.fromkeys(str(config.get(key)) for config in configs))
