"""What Hydra has written about a run, and that ``ckpt=RUN`` alone resumes it, with the overrides it was started with.

Used before Hydra composes the config, so nothing heavy is imported.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from yaml import YAMLError

from fish_lightning.files import run_of
from fish_lightning.resume.folders import names_run


def with_overrides_of_run(arguments: Sequence[str]) -> list[str]:
    """Put the overrides of the run that ``ckpt`` names before the command line's own, which take precedence.

    Returns:
        The same where ``ckpt`` names no run, or in a multirun.
    """
    own = [word for word in arguments if "=" in word and not word.startswith("-")]
    ckpt = next((word.partition("=")[2] for word in own if word.startswith("ckpt=")), None)
    if not names_run(ckpt) or {"-m", "--multirun"} & set(arguments):
        return list(arguments)
    begun = overrides_of(run_of(Path(_unquoted(str(ckpt))).expanduser()))
    given = {key_of(word) for word in own}  # ckpt among them
    kept = [word for word in begun if key_of(word) not in given and not key_of(word).startswith("callbacks.pruning.")]
    if "sweep" in map(key_of, kept) and "hydra.mode" not in given:
        kept.append("hydra.mode=RUN")  # a sweep's choices, for one of its jobs
    first = next((i for i, word in enumerate(arguments) if word in own), len(arguments))
    return [*arguments[:first], *kept, *arguments[first:]]


def overrides_of(run: Path) -> list[str]:
    """Return the overrides that a run was started with; none where its folder does not say."""
    words = loaded(run / ".hydra" / "overrides.yaml")
    return list(map(str, words)) if OmegaConf.is_list(words) else []


def key_of(override: str) -> str:
    """Return the setting or the group that an override is about."""
    return override.lstrip("+~").partition("=")[0].partition("@")[0]


def loaded(file: Path) -> Any:
    """Return a YAML file as OmegaConf reads it; empty where it cannot be read."""
    try:
        return OmegaConf.load(file)
    except (OSError, YAMLError, UnicodeDecodeError):
        return OmegaConf.create()


def _unquoted(value: str) -> str:
    """Return a value without the quotes of Hydra's grammar."""
    return value[1:-1].replace("\\'", "'") if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" else value
