"""The folder of a run: which one it is, what Hydra has written in it, who may write to it, and what completes it.

A resumed run stays in its own folder. A folder that holds a run is not written to by another one. ``summary.json`` is
written last: it marks a run as complete. Used before Hydra composes the config, so nothing heavy is imported.
"""

import zipfile
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError

from fish_lightning.distributed.cluster import is_first_process, slurm_restarts
from fish_lightning.errors import UserError, end_with, from_os_error
from fish_lightning.files import locked, override, run_of, shown

COMPLETE = "summary.json"


def names_run(ckpt: str | None) -> bool:
    """Return whether ``ckpt`` names a run, unlike ``last`` and ``auto``, which are about the folder written to."""
    return ckpt not in (None, "", "null", "last", "auto")


def resumes_if_possible(ckpt: str | None) -> bool:
    """Return whether the run in the folder is resumed where there is one, and a new one started where there is none."""
    return ckpt == "auto" or (ckpt is None and slurm_restarts() > 0)


def run_folder(ckpt: str | None, new: str) -> str:
    """Return the folder of the run that ``ckpt`` belongs to, or ``new`` for a new run."""
    if not names_run(ckpt):
        return new
    path = Path(str(ckpt))
    if path.is_dir():
        return str(path) if (path / "checkpoints" / "last.ckpt").is_file() else new
    # Hydra writes to the folder before the checkpoint is read: a file that cannot be one must leave the run unchanged.
    resumable = path.parent.name == "checkpoints" and path.name != "best.ckpt" and zipfile.is_zipfile(path)
    return str(path.parent.parent) if resumable else new


def with_overrides_of_run(arguments: Sequence[str]) -> list[str]:
    """Put the overrides of the run that ``ckpt`` names before the command line's own, which take precedence.

    Args:
        arguments: command-line arguments, without the program.

    Returns:
        The extended arguments; unchanged where ``ckpt`` names no run, or in a multirun.
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
    # Not resolved: an interpolation is of the config that the override becomes part of.
    words = OmegaConf.to_container(loaded(run / ".hydra" / "overrides.yaml"))
    return list(map(str, words)) if isinstance(words, list) else []


def key_of(word: str) -> str:
    """Return the setting or the group that an override is about."""
    return word.lstrip("+~").partition("=")[0].partition("@")[0]


def loaded(file: Path) -> Any:
    """Return a YAML file as OmegaConf reads it; empty where it cannot be read."""
    try:
        return OmegaConf.load(file)
    except (OSError, YAMLError, UnicodeDecodeError):
        return OmegaConf.create()


def _unquoted(value: str) -> str:
    """Return a value without the quotes of Hydra's grammar."""
    return value[1:-1].replace("\\'", "'") if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" else value


def config_folder(ckpt: str | None, time: str) -> str:
    """Return the folder of the composed config: a resumed run keeps its original one."""
    return ".hydra" if ckpt in (None, "auto") else f".hydra/resumed-{time}"


def holds_run(folder: Path) -> bool:
    """Return whether a run in ``folder`` is complete or has left a checkpoint."""
    return (folder / COMPLETE).is_file() or any(folder.glob("checkpoints/*.ckpt"))


def run_folder_lock(folder: Path) -> AbstractContextManager[None]:
    """Make other programs wait that would write to the same run folder; only the first process of a run holds it.

    A killed sweep can leave a job running (on a cluster, under submitit); started again, it must not train in the same
    folder at the same time. Within a process the lock can be taken again.
    """
    if not is_first_process():
        return nullcontext()
    return locked(folder / ".hydra" / "lock", f"waiting for another program that is training in {shown(folder)}")


class GuardRunFolder(Callback):
    """Locks a run's folder before Hydra writes to it, and refuses one that holds another run."""

    def __init__(self) -> None:
        self._held = ExitStack()

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check the folder of a single run (Hydra calls this)."""
        folder = Path(config.hydra.run.dir)
        if not is_first_process():
            return
        try:
            self._held.enter_context(run_folder_lock(folder))
        except OSError as error:  # Hydra would print a warning and continue
            end_with(from_os_error(error))
        ckpt = config.ckpt
        resumed = ckpt == "last" or resumes_if_possible(ckpt)
        if names_run(ckpt):
            resumed = run_of(Path(str(ckpt)).expanduser()).resolve() == folder.resolve()
        if holds_run(folder) and not resumed:
            end_with(
                UserError(
                    f"hydra.run.dir: {shown(folder)} already contains a run\n"
                    f"resume it: {override('ckpt', folder)}; or choose another folder"
                )
            )

    def on_run_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Release the lock (Hydra calls this)."""
        self._held.close()
