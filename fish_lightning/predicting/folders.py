"""The folder of a run of ``predict``: that of a run with the same command that was stopped, or a new one.

Read while the config is composed: no torch here.
"""

import hashlib
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fish_lightning.files import override


def command_of(*words: Any) -> list[str]:
    """Return what two runs must have in common for the second to resume the first: words and working directory."""
    return [str(Path.cwd()), *map(str, words)]


def predict_folder(runs: str, new: str, shard: str | None, output: str | None, *words: Any) -> str:
    """Return the folder to write to.

    Args:
        runs: folder that contains all runs.
        new: name of the folder of a new run.
        shard: shard such as ``"3/64"``; the processes of all shards write to one folder, named after the command.
        output: URL that the rows are written to; the folder, also named after the command, has the lock of this run.
        words: settings that must be equal to resume a run.
    """
    command = command_of(*words, *([output] if output else []))
    if shard is not None or output is not None:
        prefix = "output" if shard is None else "shards"
        return str(Path(runs, f"{prefix}-{hashlib.sha256(repr(command).encode()).hexdigest()[:12]}"))
    for manifest in sorted(Path(runs).glob("*/predictions/manifest.json"), reverse=True):  # the newest first
        try:
            found = json.loads(manifest.read_text(encoding="utf-8"))
            same, complete = found["command"] == command, found["complete"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if same:
            return str(Path(runs, new) if complete else manifest.parent.parent)
    return str(Path(runs, new))


def resume_command(arguments: Sequence[str], folder: Path | None) -> str:
    """Return the command that resumes a run, ready to be typed.

    Args:
        arguments: command-line arguments of this run.
        folder: folder of the run; None: any will do.
    """
    words = [word for word in arguments if not word.startswith("hydra.run.dir=")]
    command = shlex.join(["python", "-m", "fish_lightning.predict", *words])
    return f"{command} {override('hydra.run.dir', folder)}" if folder else command
