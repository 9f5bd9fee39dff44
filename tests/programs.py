"""Programs in processes of their own, without the seconds that their imports take.

A server has imported everything; each program is a fork of it that runs its module as ``python -m`` does, with its own
arguments, working directory, environment, output and exit code, and dies of signals like any other process. What such
a program starts with ``sys.executable -m``, ranks and workers, is such a fork too: see ``launcher.py``.
"""

import atexit
import fcntl
import gc
import importlib
import json
import marshal
import os
import runpy
import select
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import yaml

IMPORTED = (
    *("fish_lightning", "albumentations.pytorch", "hydra", "lightning.pytorch", "torchvision", "torchmetrics"),
    *("matplotlib.figure", "matplotlib.backends.backend_agg", "torch.utils.tensorboard", "tensorboard.plugins.hparams"),
    *(("optuna.storages._rdb.storage", "optuna.samplers._tpe.sampler") if find_spec("optuna") else ()),
    # What an entry point imports, except itself; that each starts on its own is tested in test_cli.py.
    *("fish_lightning.cli", "fish_lightning.report.run", "fish_lightning.resume.compatibility"),
    *("fish_lightning.training.summary", "fish_lightning.training.tensorboard", "fish_lightning.training.trainer"),
    *("fish_lightning.settings.command", "fish_lightning.data.transforms", "fish_lightning.models.schedules"),
    *("fish_lightning.resume.checkpoints", "fish_lightning.resume.metrics_csv", "fish_lightning.resume.signals"),
    *(
        "fish_lightning.training.trackers",
        "hydra._internal.logging_config",
        "PIL.JpegImagePlugin",
        "PIL.BmpImagePlugin",
    ),
    *(("s3fs",) if find_spec("s3fs") else ()),  # which Lightning imports where it is installed
)


class Program:
    """A running program; ``pid`` is its process id."""

    def __init__(self, pid, folder, exit_code, command):
        self.pid, self.folder, self.exit_code, self.command = pid, folder, exit_code, command

    def communicate(self, timeout=300):
        """Wait for it; return a ``subprocess.CompletedProcess``."""
        in_time = bool(select.select([self.exit_code], [], [], timeout)[0])
        if not in_time:
            os.kill(self.pid, signal.SIGKILL)
            select.select([self.exit_code], [], [])
        code = int(os.read(self.exit_code, 10))
        os.close(self.exit_code)
        printed = [(Path(self.folder.name) / name).read_text() for name in ("out", "err")]
        self.folder.cleanup()
        if not in_time:
            raise subprocess.TimeoutExpired(self.command, timeout, *printed)
        return subprocess.CompletedProcess(self.command, code, *printed)


class Programs:
    """The server, started when it is first used."""

    def __init__(self):
        self.server = None

    def start(self, name, arguments, cwd, env):
        """Start a module as a program."""
        if self.server is None:
            self.folder = tempfile.TemporaryDirectory()
            command = [sys.executable, __file__, self.folder.name]
            self.server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        folder = tempfile.TemporaryDirectory()
        for file in ("out", "err"):
            Path(folder.name, file).touch()
        os.mkfifo(Path(folder.name, "exit"))
        exit_code = os.open(Path(folder.name, "exit"), os.O_RDONLY | os.O_NONBLOCK)
        order = {"name": name, "arguments": arguments, "cwd": str(cwd), "env": env, "folder": folder.name}
        self.server.stdin.write(json.dumps(order) + "\n")
        self.server.stdin.flush()
        return Program(int(self.server.stdout.readline()), folder, exit_code, [sys.executable, "-m", name, *arguments])

    def close(self):
        """End the server."""
        if self.server is not None:
            self.server.communicate()
            self.folder.cleanup()


def serve(folder):
    """Fork for each order, of stdin or a launcher; return it in the fork, and None in the server at the end."""
    python, launcher = Path(folder, "python"), Path(__file__).with_name("launcher.py")
    words = [sys.executable, "-ISE", str(launcher), f"{folder}/door", sys.executable]
    python.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
    python.chmod(0o755)
    sys.executable = str(python)  # before the imports: multiprocessing remembers it
    door = socket.socket(socket.AF_UNIX)
    door.bind(f"{folder}/door")
    door.listen()
    for module in IMPORTED:
        importlib.import_module(module)
    yaml.SafeLoader = yaml.CSafeLoader  # a quarter of the time that Hydra takes to compose a config
    gc.freeze()  # forks need not copy the pages of these objects
    while True:
        launched = door in select.select([sys.stdin, door], [], [])[0]
        order = accepted = None
        if launched:
            accepted, _ = door.accept()
        elif line := sys.stdin.readline():
            order = json.loads(line)
        else:
            return None
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:  # those that have ended
                pass
        if os.fork() == 0:
            door.close()
            return attend_launcher(accepted) if launched else attend(order)
        if launched:
            accepted.close()


def attend(order):
    """Fork, print the process id and write the exit code; return the order in the fork."""
    folder = order.pop("folder")
    process = os.fork()
    if process == 0:
        outputs = (os.open(f"{folder}/{name}", os.O_WRONLY | os.O_APPEND) for name in ("out", "err"))
        return order | {"files": dict(enumerate([os.open(os.devnull, os.O_RDONLY), *outputs]))}
    print(process, flush=True)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    os.write(os.open(Path(folder, "exit"), os.O_WRONLY | os.O_NONBLOCK), b"%d" % code)
    os._exit(0)


def attend_launcher(connection):
    """Fork, pass on the signals that the launcher gets and send it the exit code; return the order in the fork."""
    size, files, *_ = socket.recv_fds(connection, 8, 100)
    with connection.makefile("rb") as stream:
        order = marshal.loads(stream.read(int.from_bytes(size, "big")))
    numbers, parent, leader = (order.pop(key) for key in ("numbers", "parent", "leader"))
    ended, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    process = os.fork()
    if process == 0:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for file in (ended, wake, connection.detach()):
            os.close(file)
        if leader:
            os.setsid()
        if order["env"].get("FISH_LIGHTNING_PARENT") == str(parent):  # whose end the program notices
            order["env"]["FISH_LIGHTNING_PARENT"] = str(os.getppid())
        return order | {"files": dict(zip(numbers, files, strict=True))}
    for file in files:
        os.close(file)
    send = os.killpg if leader else os.kill
    while ended not in select.select([ended, connection], [], [])[0]:
        number = connection.recv(1)
        if number == b"\0":  # the launcher's parent has ended
            os._exit(0)
        with suppress(ProcessLookupError):
            send(process, ord(number or bytes([signal.SIGKILL])))
        if not number:
            break
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    with suppress(OSError):
        connection.sendall(b"%d" % code)
    os._exit(0)


def become(arguments, cwd, env, files):
    """Set arguments, working directory, environment and open files (``{number: file}``) of this process."""
    moved = {number: fcntl.fcntl(file, fcntl.F_DUPFD, max(files) + 1) for number, file in files.items()}
    for file in files.values():
        os.close(file)
    for number, file in moved.items():
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.path[:1] = [cwd, *filter(None, env.get("PYTHONPATH", "").split(os.pathsep))]
    sys.argv[1:] = arguments


if __name__ == "__main__" and (order := serve(sys.argv[1])):
    name = order.pop("name")
    become(**order)
    try:
        runpy.run_module(name, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as left:
        if not isinstance(left.code, int | None):
            raise
        code = left.code or 0
    # What Python does at its end, except to free each imported object, for which it would first copy the pages.
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code & 0xFF)
