"""An Optuna study on disk: opened by the sweeper and by each trial's run, swept by one program at a time."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from fish_lightning.errors import UserError
from fish_lightning.files import locked, shown

if TYPE_CHECKING:
    from optuna.storages import BaseStorage


def open_storage(storage: str) -> "BaseStorage":
    """The storage at a database's address (``sqlite:///FILE``, ``postgresql://…``), or a journal in a file.

    SQLite survives a kill at any moment; on a network file system, which SQLite does not trust, take a journal.
    """
    if "://" in storage:
        from optuna.storages import RDBStorage

        waits = {"connect_args": {"timeout": 60}} if storage.startswith("sqlite") else {}  # seconds, for other writers
        return RDBStorage(storage, engine_kwargs=waits)
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    return JournalStorage(JournalFileBackend(storage))


def minimized(metric: str) -> bool:
    """Whether lower is better."""
    return metric.endswith("loss")


def sweep_lock(folder: Path) -> AbstractContextManager[None]:
    """Hold a sweep's folder while the block runs.

    Raises:
        UserError: another program holds it.
    """
    busy = f"hydra.sweep.dir: another sweep is running in {shown(folder)}\nwait for it, or choose another folder"
    return locked(folder / ".lock", busy=UserError(busy))
