"""The programs in processes of their own, without the seconds that their imports take.

A fork server imports the libraries once (``multiprocessing`` has one); each program is a fork of it that runs the
module as ``python -m`` does: its own arguments, folder, environment, output and exit code, and signals that end it.
"""

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

#: Not the project itself, apart from what it sets before it imports anything.
LIBRARIES = (
    *("fish_lightning", "albumentations.pytorch", "hydra", "lightning.pytorch", "matplotlib.figure", "torchvision"),
    *("torch.utils.tensorboard", "torchmetrics"),
)

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(list(LIBRARIES))


def run_module(name, arguments, cwd, env, timeout):
    """Run a module as a program; ``subprocess.CompletedProcess`` with what it printed."""
    command = [sys.executable, "-m", name, *arguments]
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        process = SERVER.Process(target=_be_program, args=(name, arguments, str(cwd), env, str(out), str(err)))
        process.start()
        process.join(timeout)
        if process.is_alive():
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(command, timeout, out.read_bytes(), err.read_bytes())
        printed = [file.read_text() if file.exists() else "" for file in (out, err)]
    return subprocess.CompletedProcess(command, process.exitcode, *printed)


def _be_program(name, arguments, cwd, env, out, err):
    for number, file in ((1, out), (2, err)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.path[:0] = [cwd, *filter(None, env.get("PYTHONPATH", "").split(os.pathsep))]
    sys.argv = [name, *arguments]
    try:
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    except Exception:
        traceback.print_exc()
        sys.exit(1)
    finally:
        atexit._run_exitfuncs()
