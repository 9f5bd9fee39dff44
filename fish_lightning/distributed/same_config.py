"""The settings that affect the results of a run, for comparing configs."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

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
    flat: dict[str, Any] = {}

    def add(node: Any, name: str) -> None:
        if isinstance(node, dict) and node:
            for key, value in node.items():
                add(value, f"{name}.{key}" if name else str(key))
        elif name not in _WITHOUT_EFFECT:
            flat[name] = node

    add(OmegaConf.to_container(cfg, resolve=True), "")
    return flat


def fingerprint(of: Mapping[str, Any]) -> str:
    """Return a hash of :func:`settings`, 16 hexadecimal digits."""
    text = json.dumps(of, sort_keys=True, default=str)
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:16]
