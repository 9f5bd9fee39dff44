"""A training run that is killed with SIGKILL, over and over: ``killing.py ORDERS.json``.

Starting a program costs seconds, so everything is imported once and each attempt is a fork: a process of its own with
its own copy of everything, which the signal ends like any other. Each order is a list of overrides and how long to wait
before the kill: seconds after the first training step of the attempt, or none.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import lightning as L
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from fish_lightning.config import CONF
from fish_lightning.train import train


class KillAt(L.Callback):
    """SIGKILL in a hook of a step; ``seconds`` later, from a process beside, when it is somewhere else."""

    def __init__(self, hook, step, seconds=0.0):
        self.step, self.seconds = step, seconds
        setattr(self, hook, self.kill)

    def kill(self, trainer, *_):
        if trainer.global_step != self.step:
            return
        if self.seconds == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        killer = os.fork()
        if killer == 0:
            time.sleep(self.seconds)
            os.kill(os.getppid(), signal.SIGKILL)
            os._exit(0)


def main():
    orders = json.loads(Path(sys.argv[1]).read_text())
    for folder, overrides in orders:
        child = os.fork()
        if child == 0:
            with initialize_config_dir(CONF, version_base="1.3"):
                cfg = compose("train", [*overrides, f"paths.output={folder}"])
            OmegaConf.set_struct(cfg, False)
            train(cfg)
            sys.stdout.flush()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        print("attempt", os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
