"""Errors that a user can cause and fix, shown once, without a traceback.

Raise :class:`UserError` where the fact is known. What the operating system refuses (:data:`REFUSALS`) and what a user's
own ``_target_`` raises is put into words here. A job shows these through :func:`shown_without_traceback`, and a program
through :func:`program` what happens before and after its jobs. Any other exception is a bug of ours and keeps its
traceback; with ``HYDRA_FULL_ERROR=1`` all but a :class:`UserError` do.
"""

import errno
import functools
import multiprocessing
import os
import select
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn, ParamSpec, TypeVar

from fish_lightning import compat
from fish_lightning.names import printable_lines

P = ParamSpec("P")
R = TypeVar("R")


_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_ELSEWHERE = "check its permissions, or write elsewhere: paths.logs=FOLDER paths.cache=FOLDER"
_GONE = "it was removed, renamed or unmounted while the program used it"
_FILE_OR_FOLDER = "a file exists where a folder is expected, or a folder where a file is"
#: What the system refuses, and what to do.
REFUSALS = {
    **dict.fromkeys(_NO_ROOM, "free disk space"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), _ELSEWHERE),
    **dict.fromkeys((errno.ENOENT, errno.ESTALE), _GONE),
    **dict.fromkeys((errno.ENOTDIR, errno.EISDIR, errno.EEXIST), _FILE_OR_FOLDER),
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EIO: "the disk or the network has failed",
    errno.EMFILE: "too many open files; raise the limit: ulimit -n 4096",
    errno.ENOMEM: "out of memory: reduce data.num_workers or data.batch_size",
}


class UserError(Exception):
    """What is wrong, where, and what to do: one to five lines.

    Attributes:
        exit_code: exit code of the program: 1, or 130 or 143 after a signal.
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
            if in_multirun():
                _error_file().unlink(missing_ok=True)  # of an earlier attempt at this job
            try:
                return task(*args, **kwargs)
            except BaseException:
                _end_workers()
                raise
        except KeyboardInterrupt:
            end_stopped()
        except Exception as raised:
            _end_without_reader(raised)
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


@contextmanager
def program() -> Iterator[None]:
    """Show what ends a program outside its jobs, or while Hydra writes their configs, without a traceback."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # what the terminal's encoding cannot show
    try:
        try:
            yield
        finally:
            sys.stdout.flush()  # at the exit of Python it would fail with a traceback
    except KeyboardInterrupt:
        end_stopped()
    except Exception as raised:
        end_if_known(raised)
        raise


def end_if_known(raised: Exception) -> None:
    """Show an exception and exit, unless it is a bug of ours."""
    _end_without_reader(raised)
    error = _user_error(raised)
    if error is not None:
        end_with(error)


def end_stopped() -> NoReturn:
    """Exit as after Ctrl-C where nothing can be saved."""
    print("stopped", file=sys.stderr, flush=True)
    sys.exit(130)


def _end_without_reader(raised: Exception) -> None:
    """Exit silently, as other programs do, where nothing reads our output any more (``… | head``)."""
    if isinstance(raised, BrokenPipeError) and hasattr(select, "poll"):
        poll = select.poll()
        poll.register(1, 0)
        if poll.poll(0):  # stdout itself is broken
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            sys.exit(128 + signal.SIGPIPE)


def _end_workers() -> None:
    """End loader workers immediately; after SIGTERM they live for a while (``start_worker``)."""
    if hasattr(signal, "SIGALRM"):
        for child in multiprocessing.active_children():
            if child.pid is not None:
                with suppress(ProcessLookupError):
                    os.kill(child.pid, signal.SIGALRM)


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
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            return error
        error = error.__cause__ or error.__context__
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, what it was raised from, and so on."""
    while error is not None:
        yield error
        error = error.__cause__


def _user_error(raised: BaseException) -> UserError | None:
    """Return a description of ``raised``, or None: Hydra wraps what a target raises when it is instantiated."""
    chain = list(_causes(raised))
    if known := next((error for error in chain if isinstance(error, UserError)), None):
        return known
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        return None
    for error in chain:
        if compat.is_misconfiguration(error):
            return UserError(f"trainer: {one_line(error)}")
        if told := _of_target(error):
            return told
    fault = full_disk(raised) or next((e for e in chain if isinstance(e, OSError) and e.errno in REFUSALS), None)
    if fault is None:
        return None
    # When a full disk ends a run, its loggers fail for the same reason and hide the error that says more.
    while raised.__context__ is not None and not isinstance(raised, UserError):
        raised = raised.__context__
    return raised if isinstance(raised, UserError) else from_os_error(fault)


def from_os_error(error: OSError) -> UserError:
    """Describe what the operating system has refused."""
    what = f"{error.filename}: {error.strerror}" if error.filename is not None else str(error.strerror)
    if error.errno in _NO_ROOM:
        what = f"a file cannot be written: {error}"
    return UserError(f"{what}\n{REFUSALS.get(error.errno or 0, '')}".strip())


def _of_target(error: BaseException) -> UserError | None:
    """Return the message for a target that cannot be instantiated: it is not found, or rejects its arguments.

    None for another error, and for a target of ours, whose failure is a bug.
    """
    failed = compat.failed_target(error)
    *_, cause = _causes(error)
    ours = failed is not None and failed.was_called and failed.target.startswith("fish_lightning.")
    if failed is None or ours or isinstance(cause, OSError):
        return None
    setting = f"{failed.key}._target_={failed.target}" if failed.key and failed.target else failed.key or "_target_"
    why = one_line(cause) if cause is not error else one_line(Exception(failed.words))
    error_class = "" if cause is error or isinstance(cause, ImportError) else f"{type(cause).__name__}: "
    return UserError(f"{setting}: {error_class}{why}\nset HYDRA_FULL_ERROR=1 to see the traceback")


def _message(error: UserError) -> str:
    """Return the text of the error, safe for a terminal."""
    return printable_lines(compat.without_worker_traceback(error))


def _error_file() -> Path:
    from hydra.core.hydra_config import HydraConfig

    return Path(HydraConfig.get().runtime.output_dir, "error.txt")


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
    return UserError(f"process {rank} lost its connection to another, which printed its own error or was killed")


def in_multirun() -> bool:
    """Return whether this is a job of a Hydra multirun."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
