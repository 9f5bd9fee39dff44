"""Errors a user can cause and mend: one sentence for the person at the keyboard, shown once, without a traceback.

Raise :class:`UserError` where the fact is known; the entry points show it through :func:`shown_without_traceback`.
Anything else that escapes is a bug of ours and keeps its traceback.
"""

import errno
import functools
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

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

    In a Hydra multirun the error is shown and handed back as ``None``, so that one bad job does not end the sweep;
    the job has then left no ``summary.json`` and ``sweep.csv`` lists it as failed.
    """

    @functools.wraps(task)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return task(*args, **kwargs)
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr, flush=True)
            sys.exit(130)
        except Exception as raised:
            error = _user_error(raised)
            if error is None:
                raise
            print(f"error: {_message(error)}", file=sys.stderr, flush=True)
            if error.exit_code == 1 and _in_multirun():
                return None  # type: ignore[return-value]  # Hydra records the job's value as "none"
            sys.exit(error.exit_code)

    return wrapper


def first_line(error: BaseException) -> str:
    """What a library says of a fault, in one short line; its kind where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0][:120] if lines else type(error).__name__


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
            return UserError("trainer: " + " ".join(str(error).split())[:400])
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


def _in_multirun() -> bool:
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
