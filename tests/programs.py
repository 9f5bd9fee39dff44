"""The programs in processes of their own, without the seconds that their imports take.

A server has imported the libraries; each program is a fork of it that runs the module as ``python -m`` does: its own
arguments, folder, environment, output and exit code, and signals that end it.
"""

import gc
import importlib
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

#: Not the project itself, apart from what it sets before it imports anything.
LIBRARIES = (
    *("fish_lightning", "albumentations.pytorch", "hydra", "lightning.pytorch", "matplotlib.figure", "torchvision"),
    *("torch.utils.tensorboard", "torchmetrics"),
)


class Programs:
    """The server, started when it is first asked for a program."""

    def __init__(self):
        self.server = None

    def run(self, name, arguments, cwd, env, timeout):
        """Run a module as a program; ``subprocess.CompletedProcess`` with what it printed."""
        if self.server is None:
            command = [sys.executable, __file__]
            self.server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        with tempfile.TemporaryDirectory() as folder:
            out, err = Path(folder, "out"), Path(folder, "err")
            order = {"name": name, "arguments": arguments, "cwd": str(cwd), "env": env, "files": [str(out), str(err)]}
            self.server.stdin.write(json.dumps(order) + "\n")
            self.server.stdin.flush()
            process = int(self.server.stdout.readline())
            in_time = bool(select.select([self.server.stdout], [], [], timeout)[0])
            if not in_time:
                os.kill(process, signal.SIGKILL)
            code = int(self.server.stdout.readline())
            printed = [file.read_text() if file.exists() else "" for file in (out, err)]
        command = [sys.executable, "-m", name, *arguments]
        if not in_time:
            raise subprocess.TimeoutExpired(command, timeout, *printed)
        return subprocess.CompletedProcess(command, code, *printed)

    def close(self):
        """End the server."""
        if self.server is not None:
            self.server.communicate()


def serve():
    """Read orders and fork; returns in each fork, with its order, and where there are no more, with None."""
    for library in LIBRARIES:
        importlib.import_module(library)
    gc.freeze()  # a fork need not copy what its garbage collector would only look at
    while line := sys.stdin.readline():
        process = os.fork()
        if process == 0:
            return json.loads(line)
        print(process, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
    return None


def become(arguments, cwd, env, files):
    """Take on what a program is started with."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    for number, file in enumerate([os.open(os.devnull, os.O_RDONLY), *(os.open(file, flags) for file in files)]):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.path[:1] = [cwd, *filter(None, env.get("PYTHONPATH", "").split(os.pathsep))]
    sys.argv[1:] = arguments


if __name__ == "__main__" and (order := serve()):
    name = order.pop("name")
    become(**order)
    runpy.run_module(name, run_name="__main__", alter_sys=True)
