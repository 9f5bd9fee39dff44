"""Programs in processes of their own, without the seconds that their imports take.

A server has imported everything; each program is a fork of it that runs its module as ``python -m`` does, with its own
arguments, working directory, environment, output and exit code, and dies of signals like any other process.
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

IMPORTED = (
    *("fish_lightning", "albumentations.pytorch", "hydra", "lightning.pytorch", "torchvision", "torchmetrics"),
    *("matplotlib.figure", "matplotlib.backends.backend_agg", "torch.utils.tensorboard", "tensorboard.plugins.hparams"),
    # What an entry point imports, except itself; that each starts on its own is tested in test_cli.py.
    *("fish_lightning.cli", "fish_lightning.report.run", "fish_lightning.resume.compatibility"),
    *("fish_lightning.training.summary", "fish_lightning.training.tensorboard", "fish_lightning.training.trainer"),
)


class Programs:
    """The server, started when it is first used."""

    def __init__(self):
        self.server = None

    def run(self, name, arguments, cwd, env, timeout):
        """Run a module as a program; return a ``subprocess.CompletedProcess``."""
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
    """Fork for each order on stdin; return the order in the fork, and None in the server at the end."""
    for module in IMPORTED:
        importlib.import_module(module)
    gc.freeze()  # forks need not copy the pages of these objects
    while line := sys.stdin.readline():
        process = os.fork()
        if process == 0:
            return json.loads(line)
        print(process, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
    return None


def become(arguments, cwd, env, files):
    """Set arguments, working directory, environment and output of this process."""
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
