"""What the processes of one run must agree on, before the first step, and the parts of an interrupted one."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig

from fish_lightning.config import fingerprint, settings
from fish_lightning.errors import UserError
from fish_lightning.models.classifier import gathered


class SameConfig(Callback):
    """Compares a hash of the config between all processes and stops the run on all of them where it differs.

    Ranks that train with other hyper-parameters are not seen in any curve (lightning-hydra-template issue 393).

    Args:
        cfg: the whole config of this process.
    """

    def __init__(self, cfg: DictConfig) -> None:
        self.settings, self.hash = settings(cfg), fingerprint(cfg)

    def state_dict(self) -> dict[str, Any]:
        """The settings, for :func:`fish_lightning.config.require_same_steps` when the run goes on."""
        return {"settings": self.settings}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Compare; the process group is there by now.

        Raises:
            UserError: another config; or fewer images to validate or test than processes, each of which needs one.
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
