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

#: What a run that goes on must have in common with its beginning: all that decides what a step does.
_OF_A_STEP = (
    *("data.resident", "data.on_error", "transforms", "model", "optimizer", "scheduler"),
    *("trainer.accumulate_grad_batches", "trainer.gradient_clip_val", "trainer.gradient_clip_algorithm"),
    *("trainer.precision", "trainer.deterministic", "trainer.limit_train_batches", "trainer.sync_batchnorm"),
    *("callbacks.progressive", "on_nan"),
)
_NOT_OF_A_STEP = ("model.weights", "model.compile")  # where it started, and how fast it goes

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


def require_same_steps(begun: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse to go on with a run in another way than it began; both are :func:`settings`.

    Raises:
        UserError: with the settings that differ.
    """

    def decides(key: str) -> bool:
        return key not in _NOT_OF_A_STEP and any(f"{key}.".startswith(f"{of}.") for of in _OF_A_STEP)

    differing = [key for key in {**begun, **now} if decides(key) and begun.get(key) != now.get(key)]
    kinds = {key.removesuffix("_target_") for key in differing if key.endswith("._target_")}
    # Of an optimizer of another kind nothing else is worth a word.
    differing = [key for key in differing if key.endswith("._target_") or not key.startswith(tuple(kinds))]
    if not differing:
        return

    def difference(key: str) -> str:
        values = [config.get(key) for config in (begun, now)]
        if any(isinstance(value, list | dict) for value in values):
            return f"another {key}"
        was, wanted = (str(value).rpartition(".")[2] if key.endswith("._target_") else value for value in values)
        return f"{key.removesuffix('._target_')}={was}, not {wanted}"

    more = f" and {len(differing) - 4} more" if len(differing) > 4 else ""
    raise UserError(
        f"ckpt: the run began with {'; '.join(map(difference, differing[:4]))}{more}\n"
        "go on with the overrides that it was started with (.hydra/overrides.yaml in its folder)"
    )


def fingerprint(cfg: DictConfig) -> str:
    """16 hexadecimal digits that two configs share if all their :func:`settings` are the same."""
    text = json.dumps(settings(cfg), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
