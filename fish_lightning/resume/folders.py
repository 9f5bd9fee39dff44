"""The folder that a run writes to, decided while its config is composed: a resumed run stays in its own folder."""

import zipfile
from pathlib import Path


def run_folder(ckpt: str | None, new: str) -> str:
    """Return the folder of the run that ``ckpt`` belongs to, or ``new`` for a new run."""
    if ckpt in (None, "", "last", "auto"):
        return new
    path = Path(str(ckpt))
    if path.is_dir():
        return str(path) if (path / "checkpoints" / "last.ckpt").is_file() else new
    # Hydra writes to the folder before the checkpoint is read: a file that cannot be one must leave the run unchanged.
    resumable = path.parent.name == "checkpoints" and path.name != "best.ckpt" and zipfile.is_zipfile(path)
    return str(path.parent.parent) if resumable else new


def config_folder(ckpt: str | None, time: str) -> str:
    """Return the folder of the composed config: a resumed run keeps its original one."""
    return ".hydra" if ckpt in (None, "auto") else f".hydra/resumed-{time}"
