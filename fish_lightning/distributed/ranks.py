"""What the processes of one run share: gathered values, one config, a decision that all of them take."""

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
    """Return ``value`` of every process, in rank order; of this one alone where there is no process group."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [value]
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def starts_processes(trainer: L.Trainer) -> bool:
    """Return whether Lightning would start the trainer's other ranks, rather than torchrun, Slurm or nobody."""
    environment = getattr(trainer.strategy, "cluster_environment", None)
    if trainer.strategy.launcher is None or environment is None:
        return False
    return not environment.creates_processes_externally


def announce_parent(trainer: L.Trainer) -> None:
    """Tell the ranks that Lightning is going to start which process they belong to."""
    if starts_processes(trainer):
        os.environ[PARENT] = str(os.getpid())


class SameConfig(Callback):
    """Compares a hash of the config between all processes and stops the run on all of them where it differs.

    Ranks that train with other hyperparameters show in no curve (lightning-hydra-template issue 393).

    Args:
        cfg: the whole config of this process.
    """

    def __init__(self, cfg: DictConfig) -> None:
        self.settings, self.hash = settings(cfg), fingerprint(cfg)

    def state_dict(self) -> dict[str, Any]:
        """Return the settings, which a resumed run compares (:mod:`fish_lightning.resume.compatibility`)."""
        return {"settings": self.settings}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Compare, as soon as there is a process group.

        Raises:
            UserError: another config; or fewer images in a split than processes, each of which needs one.
        """
        if trainer.world_size == 1:
            return
        if len(set(gathered(self.hash))) > 1:
            first, *others = gathered(self.settings)
            named = {key for other in others for key in other.keys() | first.keys() if other.get(key) != first.get(key)}
            shown = ", ".join(f"{key} ({self._values(key, [first, *others])})" for key in sorted(named)[:3])
            raise UserError(f"the processes of this run do not have the same config: {shown}")
        counts = trainer.datamodule.catalog.counts()  # type: ignore[attr-defined]
        for split in ("train", "val", "test"):
            if 0 < counts[split] < trainer.world_size:
                raise UserError(
                    f"{counts[split]} {split} images for {trainer.world_size} processes: each needs one\n"
                    "use fewer: trainer.devices, trainer.num_nodes"
                )

    @staticmethod
    def _values(key: str, configs: list[dict[str, Any]]) -> str:
        return " / ".join(dict.fromkeys(str(config.get(key)) for config in configs))
