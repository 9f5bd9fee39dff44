"""An Optuna study on disk, opened by the sweeper and by each trial; and the lock of a sweep's folder."""

import math
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from fish_lightning.errors import UserError
from fish_lightning.files import locked, shown

LONGEST = 80  # characters of a job's settings in the name of its folder

if TYPE_CHECKING:
    from optuna.storages import BaseStorage


def open_storage(storage: str) -> "BaseStorage":
    """Open a database URL (``sqlite:///FILE``, ``postgresql://…``), or a file as a journal.

    SQLite survives a kill at any time, but does not work reliably on network file systems; use a journal there.
    """
    if "://" in storage:
        from optuna.storages import RDBStorage

        waits = {"connect_args": {"timeout": 60}} if storage.startswith("sqlite") else {}  # seconds, for other writers
        return RDBStorage(storage, engine_kwargs=waits)
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    return JournalStorage(JournalFileBackend(storage))


def minimized(metric: str) -> bool:
    """Return whether a lower value is better."""
    return metric.endswith("loss")


def sweep_lock(folder: Path) -> AbstractContextManager[None]:
    """Lock a sweep's folder while the block runs.

    Raises:
        UserError: another program has locked it.
    """
    busy = f"hydra.sweep.dir: another sweep is running in {shown(folder)}\nwait for it, or choose another folder"
    return locked(folder / ".lock", busy=UserError(busy))


def job_folder(number: int, settings: Mapping[str, str]) -> str:
    """Return the name of a job's folder: its number and what tells it from others, which TensorBoard shows as its name.

    Args:
        number: of the job.
        settings: swept keys and this job's values, such as ``{"optimizer.lr": "0.01"}``: ``0_lr=0.01``.
    """
    short = [key.rpartition(".")[2] for key in settings]
    keys = short if len(set(short)) == len(short) else list(settings)
    values = (f"{float(value):.4g}" if "." in value and _is_number(value) else value for value in settings.values())
    words = ",".join(f"{key}={value}" for key, value in zip(keys, values, strict=True))
    name = re.sub(r"[^\w.=,+-]+", "-", words, flags=re.ASCII)[:LONGEST]
    return f"{number}_{name}" if name else str(number)


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
