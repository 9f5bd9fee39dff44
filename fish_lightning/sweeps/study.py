"""An Optuna study on disk, opened by the sweeper and by each trial; and the lock of a sweep's folder."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from fish_lightning.errors import UserError
from fish_lightning.files import locked, shown

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
