"""``ckpt=RUN`` alone resumes a run: the overrides it was started with are read from its folder.

Used before Hydra composes the config, so nothing heavy is imported.
"""

from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf
from yaml import YAMLError

from fish_lightning.files import run_of
from fish_lightning.resume.folders import names_run


def with_overrides_of_run(arguments: Sequence[str]) -> list[str]:
    """Put the overrides of the run that ``ckpt`` names before the command line's own, which take precedence.

    Args:
        arguments: of the command line, without the program.

    Returns:
        The same where ``ckpt`` names no run, or in a multirun.
    """
    own = [word for word in arguments if "=" in word and not word.startswith("-")]
    ckpt = next((word.partition("=")[2] for word in own if word.startswith("ckpt=")), None)
    if not names_run(ckpt) or {"-m", "--multirun"} & set(arguments):
        return list(arguments)
    begun = _overrides_of(run_of(Path(_unquoted(str(ckpt))).expanduser()))
    given = {_key(word) for word in own}
    kept = [word for word in begun if _key(word) not in given and not _key(word).startswith("callbacks.pruning.")]
    if any(_key(word) == "sweep" for word in kept) and "hydra.mode" not in given:
        kept.append("hydra.mode=RUN")  # a sweep's choices, for one of its jobs
    first = next((i for i, word in enumerate(arguments) if word in own), len(arguments))
    return [*arguments[:first], *kept, *arguments[first:]]


def _overrides_of(run: Path) -> list[str]:
    """Return the overrides that a run was started with; none where its folder does not say."""
    try:
        words = OmegaConf.to_container(OmegaConf.load(run / ".hydra" / "overrides.yaml"))
    except (OSError, YAMLError, UnicodeDecodeError):
        return []
    return [str(word) for word in words if _key(str(word)) != "ckpt"] if isinstance(words, list) else []


def _key(word: str) -> str:
    return word.lstrip("+~").partition("=")[0].partition("@")[0]


def _unquoted(value: str) -> str:
    """Return a value without the quotes of Hydra's grammar."""
    return value[1:-1].replace("\\'", "'") if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" else value
