"""The settings that affect the results of a run: one config for all its processes, and for those that resume it."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig, OmegaConf

from fish_lightning.distributed.ranks import gathered
from fish_lightning.errors import UserError

#: Settings that do not affect the results of a run.
_WITHOUT_EFFECT = (
    "ckpt",
    "report",
    "evaluate.target_error",
    "trainer.enable_progress_bar",
    "data.num_workers",
    "data.pin_memory",
    "data.persistent_workers",
    "data.prefetch_factor",
    "data.cache",
    "data.cache_dir",
)


def settings(cfg: DictConfig) -> dict[str, Any]:
    """Return all settings that affect the results, resolved, by their names on the command line (``optimizer.lr``)."""
    return dict(_flat(OmegaConf.to_container(cfg, resolve=True)))


def _flat(node: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from _flat(value, f"{name}.{key}" if name else str(key))
    elif name not in _WITHOUT_EFFECT:
        yield name, node


def fingerprint(of: Mapping[str, Any]) -> str:
    """Return a hash of :func:`settings`, 16 hexadecimal digits."""
    text = json.dumps(of, sort_keys=True, default=str)
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:16]


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
            values = {key: dict.fromkeys(str(of.get(key)) for of in (first, *others)) for key in sorted(named)[:3]}
            shown = ", ".join(f"{key} ({' / '.join(of)})" for key, of in values.items())
            raise UserError(f"the processes of this run have different configs: {shown}")
        counts = trainer.datamodule.catalog.counts()  # type: ignore[attr-defined]
        for split in ("train", "val", "test"):
            if 0 < counts[split] < trainer.world_size:
                raise UserError(
                    f"{counts[split]} {split} images for {trainer.world_size} processes: each needs at least one\n"
                    "use fewer processes: trainer.devices, trainer.num_nodes"
                )
