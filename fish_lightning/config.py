"""Where the YAML files are, what Hydra is told before it reads them, and what tells one config from another."""

import hashlib
import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fish_lightning.hardware import register_resolvers
from fish_lightning.sweeps.plugins import register_plugins

_PACKAGE = Path(__file__).parent

#: Folder of the config groups, as :func:`hydra.main` wants it: beside the package in a checkout, inside it in a wheel.
CONF = str(_PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent / "conf")

#: Settings that do not change what comes out of a run.
_WITHOUT_EFFECT = ("ckpt", "trainer.enable_progress_bar", "data.num_workers", "data.pin_memory")

register_resolvers()
register_plugins()


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
