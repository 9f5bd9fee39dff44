"""Errors a user can cause and mend: one sentence for the person at the keyboard, shown once, without a traceback.

Raise :class:`UserError` where the fact is known; the entry points show it through :func:`shown_without_traceback`.
Anything else that escapes is a bug of ours and keeps its traceback.
"""

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


def _user_error(error: BaseException | None) -> UserError | None:
    """The user's error that ``error`` is or was raised from: Hydra wraps what a target raises while it is made."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__
    return error


def _message(error: UserError) -> str:
    """Its text, without the traceback that a loader worker wraps it in."""
    return str(error).rpartition(f"{type(error).__module__}.{type(error).__qualname__}: ")[2].strip()


def _in_multirun() -> bool:
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
