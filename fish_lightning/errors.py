"""Errors a user can cause and mend: one sentence for the person at the keyboard, shown once, without a traceback.

Raise :class:`UserError` where the fact is known; the entry points show it through :func:`shown_without_traceback`.
Anything else that escapes is a bug of ours and keeps its traceback.
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

P = ParamSpec("P")
R = TypeVar("R")


class UserError(Exception):
    """What is wrong, where, and what to do: one to five lines.

    Attributes:
        exit_code: status the program ends with (1; 130 or 143 after a signal).
    """

    exit_code = 1


def shown_without_traceback(task: Callable[P, R]) -> Callable[P, R]:
    """Turn a :class:`UserError` that leaves ``task`` into a message on stderr and an exit status.

    In a Hydra multirun an error, of whatever kind, is shown and handed back as ``None``, so that one bad job does not
    end the sweep; the job's folder then holds ``error.txt`` and ``sweep.csv`` lists it as failed. Where it is one of
    several processes it ends all the same: the others would wait for it.
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
            goes_on = in_multirun() and _processes() == 1
            error = _user_error(raised) or _lost_process(raised)
            if error is None and not goes_on:
                raise
            if error is not None and (error.exit_code != 1 or not goes_on):
                end_with(error)
            text = traceback.format_exc() if error is None else f"error: {_message(error)}\n"
            print(text, end="", file=sys.stderr, flush=True)
            _error_file().write_text(text, encoding="utf-8")
            return None  # type: ignore[return-value]  # Hydra records the job's value as "none"

    return wrapper


def end_with(error: UserError) -> NoReturn:
    """Show the error and end the program with its exit code."""
    print(f"error: {_message(error)}", file=sys.stderr, flush=True)
    sys.exit(error.exit_code)


def first_line(error: BaseException) -> str:
    """Return the first line of a library's error, shortened; the error's class where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0][:120] if lines else type(error).__name__


def one_line(error: BaseException) -> str:
    """Return all lines of a library's error as one, shortened."""
    return " ".join(str(error).split())[:400]


def full_disk(error: BaseException | None) -> OSError | None:
    """The refusal of a full disk, a quota or a limit on files that ``error`` is or was raised after."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return error
        error = error.__cause__ or error.__context__
    return None


def _user_error(raised: BaseException) -> UserError | None:
    """The user's error that ``raised`` is or was raised from: Hydra wraps what a target raises while it is made.

    Lightning's word for a setting that it refuses counts as one, and so does a disk that takes no more of any file.
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
    # While a run ends for want of room, its loggers fail for the same reason, and hide the error that says more.
    while raised.__context__ is not None and not isinstance(raised, UserError):
        raised = raised.__context__
    return raised if isinstance(raised, UserError) else UserError(f"a file cannot be written: {fault}\nmake room")


def _message(error: UserError) -> str:
    """Its text, without the traceback that a loader worker wraps it in."""
    return str(error).rpartition(f"{type(error).__module__}.{type(error).__qualname__}: ")[2].strip()


def _error_file() -> Path:
    from hydra.core.hydra_config import HydraConfig

    return Path(HydraConfig.get().runtime.output_dir, "error.txt")


def _forget_error() -> None:
    """A job that is run again has not failed yet."""
    if in_multirun():
        _error_file().unlink(missing_ok=True)


def _processes() -> int:
    """How many processes this job has; torch is not imported for it."""
    torch = sys.modules.get("torch")
    if torch is None or not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 1
    return int(torch.distributed.get_world_size())


def _lost_process(error: Exception) -> UserError | None:
    """What gloo says when another process of the run has gone, in plain words."""
    if _processes() == 1 or not compat.is_lost_peer(error):
        return None
    rank = os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))
    return UserError(f"process {rank} of this run lost another one, which has shown its own error or was killed")


def in_multirun() -> bool:
    """Whether this is a job of a Hydra multirun."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
