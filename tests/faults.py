"""Faults that training runs survive, as callbacks, and a program that starts many such runs: ``faults.py ORDERS.json``.

Starting a program costs seconds, so everything is imported once and each attempt is a fork: a process of its own with
its own copy of everything, which the signal ends like any other. Each order is a run folder and a list of overrides.
"""

import json
import os
import resource
import signal
import sys
import time
from pathlib import Path

import lightning as L
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from fish_lightning.cli import CONF
from fish_lightning.errors import shown_without_traceback
from fish_lightning.train import train


class KillAt(L.Callback):
    """SIGKILL in a hook, from that step on; or ``seconds`` later, when the run is somewhere else."""

    def __init__(self, hook, step, seconds=0.0):
        self.step, self.seconds = step, seconds
        setattr(self, hook, self.kill)

    def kill(self, trainer, *_):
        if trainer.state.fn != "fit" or trainer.global_step < self.step:
            return
        if self.seconds == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        killer = os.fork()
        if killer == 0:
            time.sleep(self.seconds)
            os.kill(os.getppid(), signal.SIGKILL)
            os._exit(0)


class KillWhileWriting(L.Callback):
    """SIGKILL when half of a checkpoint's bytes are written, from that step on."""

    def __init__(self, step):
        self.step = step

    def on_train_start(self, trainer, *_):
        save = torch.save

        def save_half(content, stream):
            save(content, stream)
            if trainer.global_step >= self.step:
                stream.flush()
                stream.truncate(stream.tell() // 2)
                os.kill(os.getpid(), signal.SIGKILL)

        torch.save = save_half


class FullDisk(L.Callback):
    """From that step on no file may grow beyond ``size`` bytes, as if the disk were full."""

    def __init__(self, step, size):
        self.step, self.size = step, size

    def on_before_optimizer_step(self, trainer, *_):
        if trainer.global_step == self.step:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.size))


class Poison(L.Callback):
    """Makes the network answer with not-a-number, or infinity, in some steps, counted from 0; of one process alone.

    ``inside``: already its first layer, so that batch normalization sees it.
    """

    def __init__(self, steps, value=float("nan"), rank=0, inside=False):
        self.steps, self.value, self.rank, self.inside = steps, value, rank, inside

    def on_train_start(self, trainer, module):
        def poison(layer, inputs, output):
            now = trainer.global_step in self.steps and trainer.global_rank == self.rank
            return output * self.value if layer.training and now else None

        first = next(layer for layer in module.network.modules() if isinstance(layer, torch.nn.Conv2d))
        (first if self.inside else module.network).register_forward_hook(poison)


class OutOfTime(L.Callback):
    """Ends the run after a step, as Lightning's timer does for ``trainer.max_time``."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            trainer.should_stop = True


class Send(L.Callback):
    """Sends this process a signal in a hook of a step, ``times`` in a row; of several processes to that one."""

    def __init__(self, hook, step, number, times=1, rank=0):
        self.step, self.number, self.times, self.rank = step, number, times, rank
        setattr(self, hook, self.send)

    def send(self, trainer, *_):
        if trainer.global_step == self.step and trainer.global_rank == self.rank:
            for _ in range(self.times):
                signal.raise_signal(self.number)


def main():
    orders = json.loads(Path(sys.argv[1]).read_text())
    for folder, overrides in orders:
        child = os.fork()
        if child == 0:
            with initialize_config_dir(CONF, version_base="1.3"):
                cfg = compose("train", [*overrides, f"paths.output={folder}"])
            OmegaConf.set_struct(cfg, False)
            try:
                shown_without_traceback(train)(cfg)
            except SystemExit as left:
                os._exit(left.code)
            finally:
                sys.stdout.flush()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        print("attempt", os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
