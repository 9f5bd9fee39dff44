"""Make a program of a task: the command line is checked before Hydra creates the run's folder.

The config of each job, also in a sweep, is checked before its task begins.
"""

import argparse
import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, OverrideType
from hydra.errors import ConfigCompositionException, HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from fish_lightning import compat, errors
from fish_lightning.cli import CONF, choices
from fish_lightning.errors import UserError, shown_without_traceback
from fish_lightning.run_log import logged
from fish_lightning.settings.check import Check, refuse, require_valid
from fish_lightning.settings.rules import join_words


def require_valid_command(program: str, arguments: Sequence[str]) -> DictConfig | None:
    """Refuse a command line before Hydra reads it, and before anything is written.

    What Hydra reports clearly (an unknown choice of a group, a malformed override) is left to it. Its advice on a
    key that no config has is to append the key, which nothing would read.

    Args:
        program: a key of ``SCHEMAS``.
        arguments: ``sys.argv[1:]``.

    Returns:
        The config of a single run, with its ``hydra`` node; None where Hydra itself has to compose one, or to refuse.

    Raises:
        UserError: a setting is unknown, missing, or does not follow its rule; or Hydra cannot work in this folder.
    """
    _require_working_folder()
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--config-path", "-cp", default=CONF)
    parser.add_argument("--config-name", "-cn", default=program)
    parser.add_argument("--config-dir", "-cd")
    parser.add_argument("--cfg", "-c")
    parser.add_argument("--package", "-p")
    options, rest = parser.parse_known_args(arguments)
    words = [word for word in rest if not word.startswith("-")]
    flags = {word for word in rest if word.startswith("-")}
    asks = options.cfg is not None or not flags <= {"-m", "--multirun", "-r", "--run"}
    completes = flags & {"-sc", "--shell-completion"}  # whose words are no settings
    if (asks and not words) or completes or not Path(options.config_path).is_absolute():
        return None
    folders = [options.config_path, *([str(Path(options.config_dir).absolute())] if options.config_dir else [])]
    search = [f"hydra.searchpath=[file://{folder}]" for folder in folders[1:]]
    refused = None
    try:
        overrides = OverridesParser.create().parse_overrides(words)
        refuse(_no_choices(program, overrides, folders))
        with initialize_config_dir(folders[0], job_name=program, version_base="1.3"):
            single = [_single(override) for override in overrides]
            try:
                cfg = compose(options.config_name, search + single, return_hydra_config=True)
            except ConfigCompositionException as error:
                refused = getattr(error.__cause__, "full_key", None)
                forced = [f"++{one}" if _sets(o, folders) else one for o, one in zip(overrides, single, strict=True)]
                cfg = compose(options.config_name, search + forced, return_hydra_config=True)
    except (HydraException, OmegaConfBaseException, YAMLError, OSError):
        return None
    check = Check(cfg, program)
    swept = {override.key_or_group for override in overrides if override.is_sweep_override()}  # each job is checked
    refuse(check.unknown + [said for key, said in check.wrong.items() if not asks and key not in swept])
    for word in words:
        if refused is not None and f"{word.partition('=')[0]}.".startswith(f"{refused}."):
            raise UserError(f"{refused}: not in this config; to add it: +{word}")
    is_single_run = not asks and not flags & {"-m", "--multirun"} and cfg.hydra.mode != RunMode.MULTIRUN
    return cfg if is_single_run and search + single == words and refused is None else None


def _require_working_folder() -> None:
    """Refuse to start where Hydra ends with a traceback."""
    try:
        here = str(Path.cwd())
    except OSError as error:
        raise UserError(f"the working directory cannot be read ({error.strerror}); start from another") from None
    if "${" in here:
        raise UserError(
            f"Hydra reads ${{…}} in the name of the working directory as a setting: {here}\nstart from another"
        )


def _no_choices(program: str, overrides: Sequence[Override], folders: Sequence[str]) -> list[str]:
    """Return messages for groups that are given no name, where Hydra ends with a traceback."""
    return [
        f"{o.input_line}: expected {join_words(names, 'or')}"
        for o in overrides
        if _is_group(o, folders) and not (o.is_delete() or o.is_sweep_override())
        if not isinstance(o.value(), str | list | dict)
        if (names := {**choices("", folders), **choices(program, folders)}.get(o.key_or_group))
    ]


def _is_group(override: Override, folders: Sequence[str]) -> bool:
    return any(Path(folder, override.key_or_group).is_dir() for folder in folders)


def _sets(override: Override, folders: Sequence[str]) -> bool:
    """Return whether an override, without a plus, sets a value of the program's config."""
    plain = override.type is OverrideType.CHANGE and not override.key_or_group.startswith("hydra.")
    return plain and (isinstance(override.value(), dict) or not _is_group(override, folders))


def _single(override: Override) -> str:
    """Return an override with the first value of its sweep."""
    if not override.is_sweep_override():
        return str(override.input_line)
    sweep = override.value()
    first = sweep.start if isinstance(sweep, IntervalSweep) else next(override.sweep_string_iterator())
    return f"{override.get_key_element()}={first}"


def entry_point(
    program: str, task: Callable[[DictConfig], Any], complete: Callable[[Sequence[str]], list[str]] = list
) -> Callable[[], None]:
    """Return the entry point of a program: a task as a Hydra application with checked settings and short errors.

    Args:
        program: a key of ``SCHEMAS``, and the name of its config.
        task: function that takes the composed config and does the program's work.
        complete: function that returns the command-line arguments together with what they imply.
    """

    @functools.wraps(task)
    def job(cfg: DictConfig) -> Any:
        require_valid(cfg, program)
        return task(cfg)

    shown = logged(shown_without_traceback(job))
    application = hydra.main(version_base="1.3", config_path=CONF, config_name=program)(shown)

    def main() -> None:
        with errors.program():
            sys.argv[1:] = complete(sys.argv[1:])
            with compat.composed_already(require_valid_command(program, sys.argv[1:])):
                application()

    return main


def as_ckpt(words: Sequence[str]) -> list[str]:
    """Return a command line with ``ckpt`` instead of ``model``, which for Hydra is the group of networks."""
    return [f"ckpt={word[len('model=') :]}" if word.startswith("model=") else word for word in words]
