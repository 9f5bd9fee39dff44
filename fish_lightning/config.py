"""Where the YAML files are, what Hydra is told before it reads them; what is a number, what tells configs apart."""

import hashlib
import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fish_lightning.errors import UserError
from fish_lightning.hardware import register_resolvers
from fish_lightning.sweeps.plugins import register_plugins

_PACKAGE = Path(__file__).parent

#: Folder of the config groups, as :func:`hydra.main` wants it: beside the package in a checkout, inside it in a wheel.
CONF = str(_PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent / "conf")

#: Settings that do not change what comes out of a run.
_WITHOUT_EFFECT = (
    "ckpt",
    "trainer.enable_progress_bar",
    "data.num_workers",
    "data.pin_memory",
    "data.persistent_workers",
    "data.prefetch_factor",
    "data.cache",
    "data.cache_dir",
)

register_resolvers()
register_plugins()

#: Whole numbers of all programs, and the least that each can be. Libraries ask for them late, in words of their own.
_WHOLE_NUMBERS = {
    "seed": 0,
    "batch_size": 1,
    "num_workers": 0,
    "data.batch_size": 1,
    "data.num_workers": 0,
    "data.prefetch_factor": 1,
    "transforms.height": 1,
    "transforms.width": 1,
    "trainer.max_epochs": -1,
    "trainer.min_epochs": 0,
    "trainer.max_steps": -1,
    "trainer.min_steps": 0,
    "trainer.num_nodes": 1,
    "trainer.log_every_n_steps": 0,
    "trainer.check_val_every_n_epoch": 1,
    "trainer.accumulate_grad_batches": 1,
    "trainer.num_sanity_val_steps": -1,
}


def require_whole_numbers(cfg: DictConfig) -> None:
    """Refuse what cannot be a number of epochs, images or processes, before anything is done.

    Raises:
        UserError: with the key and its value.
    """
    for key, least in _WHOLE_NUMBERS.items():
        value = OmegaConf.select(cfg, key)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
            raise UserError(f"{key}={value}: it is a whole number, {least} or more")


def settings(cfg: DictConfig) -> dict[str, Any]:
    """Every setting that has an effect, resolved, by its name on the command line (``optimizer.lr``)."""
    flat: dict[str, Any] = {}

    def add(node: Any, name: str) -> None:
        if isinstance(node, dict) and node:
            for key, value in node.items():
                add(value, f"{name}.{key}" if name else str(key))
        elif name not in _WITHOUT_EFFECT:
            flat[name] = node

    add(OmegaConf.to_container(cfg, resolve=True), "")
    return flat


def fingerprint(cfg: DictConfig) -> str:
    """16 hexadecimal digits that two configs share if all their :func:`settings` are the same."""
    text = json.dumps(settings(cfg), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
