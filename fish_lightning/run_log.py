"""``train.log`` and the like: what a job prints, with the time of each line, through Hydra's ``logging``.

Programs print: their output is what the terminal, a pipe or a notebook shows. The log is a copy of it, and so has the
lines of libraries, warnings and errors too, which a logger of our own would miss.
"""

import functools
import logging
import sys
import threading
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from typing import Any, ParamSpec, TextIO, TypeVar

from fish_lightning.distributed.cluster import is_first_process

P = ParamSpec("P")
R = TypeVar("R")


def say(text: str) -> None:
    """Print a message that all processes of a run have, once: on the first one."""
    if is_first_process():
        print(text, flush=True)


class _Logged:
    """A stream whose complete lines are also logged; a progress bar is, when it ends.

    What a signal handler prints while a line is being logged is not logged: files refuse a write within a write.
    """

    _of_thread = threading.local()  # has the attribute "logs" while this thread logs a line

    def __init__(self, stream: TextIO, log: Callable[[str], None]) -> None:
        self._stream, self._log, self._line = stream, log, ""

    def write(self, text: str) -> int:
        """Write to the stream, and log the lines that end with this."""
        written = self._stream.write(text)
        if not hasattr(self._of_thread, "logs"):
            *lines, self._line = (self._line + text).split("\n")
            self._of_thread.logs = True
            try:
                for line in lines:
                    self._log(line.rpartition("\r")[2])
            finally:
                del self._of_thread.logs
        return written

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _warn_once(file: logging.FileHandler, stream: TextIO) -> Callable[[logging.LogRecord], None]:
    """Return what a handler does with an error: ``logging`` would print a traceback for each line of the run."""
    warned = False

    def handle(record: logging.LogRecord) -> None:
        nonlocal warned
        error = sys.exc_info()[1]
        if isinstance(error, OSError) and not warned:
            warned = True
            stream.write(f"warning: {file.baseFilename} is incomplete ({error.strerror or error})\n")

    return handle


def logged(task: Callable[P, R]) -> Callable[P, R]:
    """Copy what a Hydra job prints to its log file; only on the first process of a run."""

    @functools.wraps(task)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        files = [handler for handler in logging.getLogger().handlers if isinstance(handler, logging.FileHandler)]
        if not files or not is_first_process():
            return task(*args, **kwargs)
        logger = logging.getLogger("fish_lightning")
        logger.handlers, logger.propagate = list(files), False  # the terminal has had it
        logger.setLevel(logging.INFO)
        for file in files:
            file.handleError = _warn_once(file, sys.stderr)  # type: ignore[assignment,method-assign]
        out, err = _Logged(sys.stdout, logger.info), _Logged(sys.stderr, logger.warning)
        with redirect_stdout(out), redirect_stderr(err):
            return task(*args, **kwargs)

    return wrapper
