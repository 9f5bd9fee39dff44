"""Errors that a user can cause and fix, shown once, without a traceback.

Raise :class:`UserError` where the fact is known; the entry points show it through :func:`shown_without_traceback`.
Any other exception is a bug of ours and keeps its traceback.
"""

import errno
import functools
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, ParamSpec, TypeVar

from fish_lightning import compat
from fish_lightning.names import printable

P = ParamSpec("P")
R = TypeVar("R")


class UserError(Exception):
    """What is wrong, where, and what to do: one to five lines.

    Attributes:
        exit_code: of the program: 1, or 130 or 143 after a signal.
    """

    exit_code = 1


def shown_without_traceback(task: Callable[P, R]) -> Callable[P, R]:
    """Turn a :class:`UserError` raised by ``task`` into a message on stderr and an exit code.

    In a Hydra multirun any exception is printed, written to ``error.txt`` in the job's folder, and turned into a return
    value of None, so that one failed job does not end the sweep. A process that is one of several ends nevertheless:
    the others would wait for it.
    """

    @functools.wraps(task)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            _forget_error()
            return task(*args, **kwargs)
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr, flush=True)
            sys.exit(130)
        except Exception as raised:
            sweep_continues = in_multirun() and _processes() == 1
            error = _user_error(raised) or _lost_process(raised)
            if error is None and not sweep_continues:
                raise
            if error is not None and (error.exit_code != 1 or not sweep_continues):
                end_with(error)
            text = traceback.format_exc() if error is None else f"error: {_message(error)}\n"
            print(text, end="", file=sys.stderr, flush=True)
            _error_file().write_text(text, encoding="utf-8")
            return None  # type: ignore[return-value]  # Hydra records the job's value as "none"

    return wrapper


def end_with(error: UserError) -> NoReturn:
    """Print the error and exit with its code."""
    print(f"error: {_message(error)}", file=sys.stderr, flush=True)
    sys.exit(error.exit_code)


def first_line(error: BaseException) -> str:
    """Return the first line of a library's error, shortened; the name of its class where the message is empty."""
    lines = str(error).strip().splitlines()
    return lines[0][:120] if lines else type(error).__name__


def one_line(error: BaseException) -> str:
    """Return all lines of a library's error as one, shortened."""
    return " ".join(str(error).split())[:400]


def full_disk(error: BaseException | None) -> OSError | None:
    """Return the OSError of a full disk, a quota or a file size limit in the chain of ``error``; None without one."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return error
        error = error.__cause__ or error.__context__
    return None


def _user_error(raised: BaseException) -> UserError | None:
    """Return the user's error in the chain of ``raised``: Hydra wraps what a target raises when it is instantiated.

    A setting that Lightning refuses counts as one, and so does a full disk.
    """
    error: BaseException | None = raised
    while error is not None and not isinstance(error, UserError):
        if type(error).__name__ == "MisconfigurationException":
            return UserError(f"trainer: {one_line(error)}")
        error = error.__cause__
    if error is not None:
        return error
    fault = full_disk(raised)
    if fault is None:
        return None
    # When a full disk ends a run, its loggers fail for the same reason and hide the error that says more.
    while raised.__context__ is not None and not isinstance(raised, UserError):
        raised = raised.__context__
    return raised if isinstance(raised, UserError) else UserError(f"a file cannot be written: {fault}\nmake room")


def _message(error: UserError) -> str:
    """Return the text of the error without the traceback that a loader worker puts before it, safe for a terminal."""
    text = str(error).rpartition(f"{type(error).__module__}.{type(error).__qualname__}: ")[2].strip()
    return "\n".join(map(printable, text.split("\n")))


def _error_file() -> Path:
    from hydra.core.hydra_config import HydraConfig

    return Path(HydraConfig.get().runtime.output_dir, "error.txt")


def _forget_error() -> None:
    """Remove the ``error.txt`` of an earlier attempt at this job."""
    if in_multirun():
        _error_file().unlink(missing_ok=True)


def _processes() -> int:
    """Return the number of processes of this job, without importing torch."""
    torch = sys.modules.get("torch")
    if torch is None or not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 1
    return int(torch.distributed.get_world_size())


def _lost_process(error: Exception) -> UserError | None:
    """Return the error for a collective operation that failed because another process of the run is gone."""
    if _processes() == 1 or not compat.is_lost_peer(error):
        return None
    rank = os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))
    return UserError(f"process {rank} lost another process of this run, which printed its own error or was killed")


def in_multirun() -> bool:
    """Return whether this is a job of a Hydra multirun."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
