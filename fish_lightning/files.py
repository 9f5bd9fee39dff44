"""Atomic writes, locks, tables and summaries, and how paths are shown."""

import csv
import hashlib
import json
import os
import re
import shlex
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from fish_lightning.errors import UserError, first_line
from fish_lightning.names import ENCODE_ERRORS, printable
from fish_lightning.run_log import say

#: Longest name of a file, in bytes, on all common file systems.
NAME_MAX = 255


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling of ``path``, renamed to it when the block succeeds and removed when it fails.

    It is flushed to disk before it is renamed: after a power failure ``path`` is the previous file or the new one.

    Args:
        path: the file to create or replace; its folder is created if missing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last: writers choose a format by it.
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    if len(os.fsencode(temporary.name)) > NAME_MAX:
        short = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]
        temporary = path.with_name(f".{os.getpid()}.{short}{path.suffix[:16]}")
    try:
        yield temporary
        _to_disk(temporary)
        temporary.replace(path)
        _to_disk(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def csv_table(path: Path) -> Iterator[Any]:
    """Yield a ``csv.writer`` whose file is written atomically; names keep their bytes."""
    with (
        atomic_write(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors=ENCODE_ERRORS) as stream,
    ):
        yield csv.writer(stream)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8 atomically; what UTF-8 cannot encode is escaped."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def remove_strays(folder: Path) -> None:
    """Remove the temporary files, in ``folder`` and below, of processes that were killed while writing."""
    for file in folder.rglob(".*"):
        writer = re.match(r"\.(\d+)\..", file.name)
        # This process has written nothing yet: a file with its id is an earlier one's.
        if writer and file.is_file() and (int(writer[1]) == os.getpid() or not is_alive(int(writer[1]))):
            file.unlink(missing_ok=True)


@contextmanager
def locked(file: Path, waiting: str | None = None, busy: UserError | None = None) -> Iterator[None]:
    """Hold a lock while the block runs; the system releases it when the process dies.

    Args:
        file: lock file; its folder is created if missing.
        waiting: message to print before waiting for another process.
        busy: error to raise instead of waiting.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file, is_singleton=True)  # which a process can take again
    try:
        held = lock.acquire(timeout=0)
    except Timeout:
        if busy is not None:
            raise busy from None
        if waiting is not None:
            say(waiting)
        held = lock.acquire()
    with held:
        yield


def node_lock(folder: Path) -> Path:
    """Return the lock file, one per machine and user, for what is done once for a folder that may not exist yet."""
    user = os.getuid() if hasattr(os, "getuid") else "user"
    name = hashlib.sha256(os.fsencode(folder.absolute())).hexdigest()[:16]
    return Path(tempfile.gettempdir(), f"fish_lightning-{user}-{name}.lock")


def byte_size(count: float) -> str:
    """Return a number of bytes in decimal units, such as ``1.2 GB``."""
    for unit in ("bytes", "KB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def sha256_of(file: Path) -> str:
    """Return the SHA-256 of a file's content, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def state_of(path: str, file: str) -> str:
    """Return a string that changes with the file: ``path`` (a name for it), its size and modification time."""
    size, time = size_and_time(file)
    return f"{path}\0missing" if size < 0 else f"{path}\0{size}\0{time}"


def size_and_time(file: str) -> tuple[int, int]:
    """Return the size in bytes and modification time in nanoseconds of a file; -1 for a missing one."""
    try:
        status = os.stat(file)  # noqa: PTH116 - pathlib takes three times as long, for each of a million files
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


def _to_disk(path: Path) -> None:
    """Flush a file's bytes, or a folder's entries, to disk."""
    if os.name != "posix" and path.is_dir():
        return  # Windows cannot open folders
    descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_alive(process: int) -> bool:
    """Return whether a process of this machine has that id; True where the system does not say."""
    if os.name != "posix":
        return True  # on Windows os.kill(process, 0) terminates the process
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # another user's
    return True


def read_summary(folder: Path) -> dict[str, Any]:
    """Return ``summary.json`` of a run's folder; empty where there is none.

    Raises:
        UserError: it is corrupt.
    """
    file = folder / "summary.json"
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except OSError:
        return {}
    except (ValueError, TypeError) as error:
        raise UserError(f"{shown(file)} is corrupt or incomplete ({first_line(error)})") from None


def read_rows(path: Path, key: str, columns: Sequence[str]) -> list[dict[str, str]]:
    """Read a CSV file with a header; names that are not UTF-8 are read as :mod:`fish_lightning.names` says.

    Args:
        path: the file, UTF-8 with or without a byte-order mark.
        key: setting that names the file, for errors.
        columns: required columns.

    Raises:
        UserError: the file does not exist, is not a CSV file, has no rows or lacks a column.
    """
    if not path.is_file():
        raise UserError(f"{key}: no file {path} (working directory: {Path.cwd()})")
    try:
        with path.open(newline="", encoding="utf-8-sig", errors=ENCODE_ERRORS) as stream:
            lines = csv.DictReader(stream, restval="")
            "".join(lines.fieldnames or ()).encode()  # the header of a binary file is no text
            rows = list(lines)
    except (UnicodeError, csv.Error) as error:
        raise UserError(f"{key}: {path} is not a CSV file ({first_line(error)})") from None
    if not rows or not set(columns) <= set(rows[0]):
        names = " and ".join(f"'{name}'" for name in columns)
        raise UserError(f"{key}: {path} has no rows with the columns {names}.")
    return rows


def shown(path: str | Path | None) -> str:
    """Return a path for the terminal: relative to the working directory where it lies below that."""
    return "none" if path is None else printable(_typed(path))


def _typed(path: str | Path) -> str:
    absolute = Path(path).absolute()
    return str(absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else absolute)


def run_of(path: Path) -> Path:
    """Return the run folder that a path names or, for a checkpoint, the run folder that contains it."""
    return path.parent.parent if path.is_file() and path.parent.name == "checkpoints" else path


def override(key: str, path: str | Path) -> str:
    """Return ``key=path`` ready to be typed: quoted for Hydra's grammar and for the shell where either requires it."""
    text = _typed(path)
    if not re.fullmatch(r"[\w/.@:+-]+", text, re.ASCII):
        text = "'" + text.replace("'", "\\'") + "'"
    word = f"{key}={text}"
    plain = "'" in word and not re.search(r'["$`\\!]', word)
    return f'"{word}"' if plain else shlex.quote(word)  # quotes each quote
