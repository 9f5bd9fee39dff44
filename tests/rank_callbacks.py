"""Callbacks that tests add to runs of several processes: ``+callbacks.spy._target_=rank_callbacks.Spy``."""

import json
import os
import signal
import time
from pathlib import Path

import lightning as L
import torch


class Spy(L.Callback):
    """Writes ``rank-N.json`` to the run folder: the settings of this process, and the loss of each step."""

    def __init__(self):
        self.losses = []

    def on_train_batch_end(self, trainer, pl_module, outputs, *_):
        self.losses.append(float(trainer.strategy.reduce(outputs["loss"], reduce_op="mean")))

    def on_train_end(self, trainer, pl_module):
        group = trainer.optimizers[0].param_groups[0]
        seen = {
            "optimizer": type(trainer.optimizers[0]).__name__,
            "weight_decay": group["weight_decay"],
            "label_smoothing": pl_module.hparams["label_smoothing"],
            "port": os.environ.get("MASTER_PORT"),
            "losses": self.losses,
        }
        folder = Path(trainer.default_root_dir)
        (folder / f"rank-{trainer.global_rank}.json").write_text(json.dumps(seen))


class Die(L.Callback):
    """Kills the process of that rank in its second step."""

    def __init__(self, rank=None):
        self.rank = rank

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == 1 and trainer.global_rank == self.rank:
            os.kill(os.getpid(), signal.SIGKILL)


class DieInTrial(L.Callback):
    """Kills the process of trial 0 in its second epoch, once."""

    def on_train_epoch_start(self, trainer, *_):
        died = Path(trainer.default_root_dir, "died")
        if trainer.current_epoch == 1 and died.parent.name == "0" and not died.exists():
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)


class FrozenBatchNorm(L.Callback):
    """Uses running statistics in batch normalization: those of a batch depend on the number of processes."""

    def on_train_batch_start(self, trainer, pl_module, *_):
        for module in pl_module.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval()


class Slow(L.Callback):
    """Sleeps in job 1 before each epoch but the first, ``SLOW_SECONDS`` long, so that a test can kill it there."""

    def on_train_epoch_start(self, trainer, *_):
        if trainer.current_epoch and Path(trainer.default_root_dir).name == "1":
            time.sleep(float(os.environ.get("SLOW_SECONDS", "0")))
