"""Faults that training runs survive, as callbacks, and a program that makes several attempts at runs.

``python -m faults ORDERS.json``: each order, a run folder and a list of overrides, runs in a fork of its own, which a
signal kills like any other process. Its output is in ``attempt-N.out`` and ``attempt-N.err``.
"""

import importlib
import json
import os
import resource
import signal
import sys
import time
import traceback
from pathlib import Path

import lightning as L
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from fish_lightning.cli import CONF
from fish_lightning.errors import shown_without_traceback
from fish_lightning.train import train


class KillAt(L.Callback):
    """SIGKILL in a hook of a stage, from that step on; or ``seconds`` later, wherever the run is then."""

    def __init__(self, hook, step, seconds=0.0, stage="fit"):
        self.step, self.seconds, self.stage = step, seconds, stage
        setattr(self, hook, self.kill)

    def kill(self, trainer, *_):
        if trainer.state.fn != self.stage or trainer.global_step < self.step:
            return
        if self.seconds == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        killer = os.fork()
        if killer == 0:
            time.sleep(self.seconds)
            os.kill(os.getppid(), signal.SIGKILL)
            os._exit(0)


class KillWhileWriting(L.Callback):
    """SIGKILL when half of a checkpoint is written, from that step on."""

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


class KillAtFile(L.Callback):
    """SIGKILL before the file of that number, counted from 0, that is written after training gets its name."""

    def __init__(self, number):
        self.left = number

    def on_test_end(self, *_):
        replace = Path.replace

        def kill_or_replace(path, target):
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            self.left -= 1
            return replace(path, target)

        Path.replace = kill_or_replace


class FullDisk(L.Callback):
    """Limit files to ``size`` bytes from that step on, as if the disk were full."""

    def __init__(self, step, size):
        self.step, self.size = step, size

    def on_before_optimizer_step(self, trainer, *_):
        if trainer.global_step == self.step:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.size))


class Poison(L.Callback):
    """Makes the output of the network NaN or infinite in some steps (from 0), on one rank.

    ``inside``: the output of its first layer, so that batch normalization sees it.
    """

    def __init__(self, steps, value=float("nan"), rank=0, inside=False):
        self.steps, self.value, self.rank, self.inside = steps, value, rank, inside

    def on_train_start(self, trainer, module):
        def poison(layer, inputs, output):
            now = trainer.global_step in self.steps and trainer.global_rank == self.rank
            return output * self.value if layer.training and now else None

        first = next(layer for layer in module.network.modules() if isinstance(layer, torch.nn.Conv2d))
        (first if self.inside else module.network).register_forward_hook(poison)


class PoisonValidation(L.Callback):
    """Makes the output of the network NaN in validations; training is not affected."""

    def on_validation_start(self, trainer, module):
        self.hook = module.network.register_forward_hook(lambda layer, inputs, output: output * float("nan"))

    def on_validation_end(self, *_):
        self.hook.remove()


class OutOfTime(L.Callback):
    """Ends the run after a step, as Lightning's timer does with ``trainer.max_time``."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            trainer.should_stop = True


class Send(L.Callback):
    """Sends the process of that rank, or its group, a signal in a hook of a step, ``times`` in a row."""

    def __init__(self, hook, step, number, times=1, rank=0, group=False):
        self.step, self.number, self.times, self.rank, self.group = step, number, times, rank, group
        if group:
            os.setsid()
        setattr(self, hook, self.send)

    def send(self, trainer, *_):
        if trainer.global_step == self.step and trainer.global_rank == self.rank:
            for _ in range(self.times):
                os.killpg(0, self.number) if self.group else signal.raise_signal(self.number)


def attempt(folder, overrides):
    """Train in ``folder`` as the program does, and exit with its code."""
    with initialize_config_dir(CONF, version_base="1.3"):
        cfg = compose("train", [*overrides, f"paths.output={folder}"])
    OmegaConf.set_struct(cfg, False)
    try:
        shown_without_traceback(train)(cfg)
        code = 0
    except SystemExit as left:
        code = left.code
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    os._exit(code)


def main():
    codes, orders = [], json.loads(Path(sys.argv[1]).read_text())
    for name in ("wandb", "mlflow"):
        if name in str(orders):
            importlib.import_module(name)  # once, rather than in each attempt
    for number, (folder, overrides) in enumerate(orders):
        child = os.fork()
        if child == 0:
            for stream, name in ((1, "out"), (2, "err")):
                os.dup2(os.open(f"attempt-{number}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
            attempt(folder, overrides)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    Path("codes.json").write_text(json.dumps(codes))


if __name__ == "__main__":
    main()
