"""Finding settings before a run: a learning-rate range test, and the largest batch size that fits.

Each prints a line to paste and writes ``tune.json`` and a plot. Models and trainers are created for it and dropped: no
checkpoint, no ``summary.json``, nothing that a later run reads.

Lightning's ``Tuner`` is not used. It removes all callbacks, so that images are not mixed and layers not frozen, gives
all parameter groups one rate, leaves checkpoints in the working folder when it is killed, and suggests the steepest
fall over the rate itself rather than its logarithm, which is always near the lowest rate: on the sample data 3e-5 and
4e-5 (two seeds), where the loss begins to fall at 2e-4 and is lowest at 4e-3.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import numpy.typing as npt
import torch
from hydra.utils import instantiate
from lightning.pytorch.utilities.memory import garbage_collection_cuda, is_oom_error
from matplotlib.figure import Figure
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from fish_lightning.data.datamodule import FishDataModule
from fish_lightning.errors import UserError, in_multirun
from fish_lightning.files import byte_size, shown, write_json
from fish_lightning.hardware import memory, peak_memory, uses_cuda
from fish_lightning.plotting.figures import batch_size_figure, learning_rate_figure, save
from fish_lightning.training.trainer import build_model, build_trainer

Floats = npt.NDArray[np.float64]

#: Callbacks that change what a step computes or how much memory it takes.
OF_A_STEP = ("mix", "average", "freeze", "randomness")
#: The range test ends where the mean loss of this many steps is this many times its lowest value.
RECENT, DIVERGED = 10, 3.0
#: Steps without which there is no curve.
FEWEST = 3
#: Standard deviation of the smoothing of the losses, as a share of the number of steps.
SMOOTHING = 0.08
#: Share of the memory of a machine, or its container, that a trial on the CPU may be expected to take.
OF_MEMORY = 0.9


def learning_rate(cfg: DictConfig, data: FishDataModule, lowest: float, highest: float, steps: int) -> float:
    """Train with a learning rate that grows exponentially; suggest the one at which the loss falls fastest.

    With ``optimizer.layer_decay`` the rate is that of the last block.

    Args:
        cfg: the whole config.
        data: the run's data module, after ``setup``.
        lowest: learning rate of the first step.
        highest: learning rate of the last step, if the loss has not diverged before.
        steps: number of optimizer steps, 20 or more.

    Returns:
        The suggested learning rate.

    Raises:
        UserError: the loss never falls, or diverges at once.

    Source: Smith 2017 (arXiv:1506.01186).
    """
    rates = np.geomspace(lowest, highest, steps)

    def schedule(optimizer: Optimizer, total_steps: int) -> LRScheduler:
        for group in optimizer.param_groups:
            group["lr"] = lowest * group.get("lr_scale", 1.0)
        return LambdaLR(optimizer, lambda step: rates[min(step, steps - 1)] / lowest)

    model = build_model(cfg, data)
    model.make_scheduler = schedule
    recorder = _Losses()
    _trainer(cfg, steps, recorder).fit(model, datamodule=data)
    losses = np.array(recorder.losses)
    if len(losses) < FEWEST:
        raise UserError(
            f"tune=lr: the loss diverges or is NaN within {FEWEST} steps from {lowest:.1e}\nset a smaller tune.lowest"
        )
    rates = rates[: len(losses)]
    ceiling = 2 * losses[:RECENT].mean()  # what has diverged must not raise the mean of what has not
    curve = smoothed(losses.clip(max=ceiling), SMOOTHING * steps)
    chosen, best = suggestion(curve)
    found = {} if chosen is None else {"falls fastest": rates[chosen], "lowest": rates[best]}
    marks = {name: float(f"{rate:.2g}") for name, rate in found.items()}
    points = {"lr": rates.tolist(), "loss": losses.tolist(), "smoothed": curve.tolist()}
    written = {"tune": "lr", "optimizer.lr": marks.get("falls fastest"), "marks": marks, **points}
    plot = _write(cfg, written, learning_rate_figure(rates, losses, curve, marks), "lr_find")
    if not marks:
        raise UserError(
            f"tune=lr: the loss does not fall between {rates[0]:.1e} and {rates[-1]:.1e}\n"
            f"see {plot}; try other tune.lowest and tune.highest, or more tune.steps"
        )
    suggested, upper = marks.values()
    print(f"the loss falls fastest at {suggested:g} and is lowest at {upper:g}, an upper bound")
    print(f"plot  {plot}\noptimizer.lr={suggested:g}", flush=True)
    return suggested


def suggestion(curve: Floats) -> tuple[int | None, int]:
    """Return the index of a smoothed loss's steepest fall before its lowest value, and that of its lowest value.

    The first is None where it does not fall.
    """
    best = int(curve.argmin())
    if best < 2:
        return None, best
    return int(np.gradient(curve[: best + 1]).argmin()), best


def smoothed(values: Floats, width: float) -> Floats:
    """Return values (N,) smoothed by a Gaussian with a standard deviation of ``width``.

    Unlike an exponential moving average it does not lag, which would shift the curve towards higher rates.
    """
    places = np.arange(len(values))
    weights = np.exp(-0.5 * ((places[:, None] - places) / width) ** 2)
    means: Floats = weights @ values / weights.sum(1)
    return means


class _Losses(L.Callback):
    """Records the mean loss of each optimizer step; ends the fit where it diverges."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self._parts: list[float] = []
        self._best = math.inf

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record the loss of a batch, of which an accumulated step has several."""
        loss = outputs["loss"] if isinstance(outputs, dict) and outputs else outputs
        if isinstance(loss, Tensor):
            self._parts.append(float(loss))
        if trainer.global_step > len(self.losses) and self._parts:
            step = float(np.mean(self._parts)) * trainer.accumulate_grad_batches  # Lightning has divided by it
            self._parts.clear()
            if not math.isfinite(step):
                trainer.should_stop = True
                return
            self.losses.append(step)
            if len(self.losses) >= RECENT:
                recent = float(np.mean(self.losses[-RECENT:]))
                self._best = min(self._best, recent)
                trainer.should_stop = recent > DIVERGED * self._best


@dataclass(frozen=True)
class Trial:
    """A batch size that fits.

    Attributes:
        batch_size: number of images in a batch.
        images_per_second: throughput of the training steps after the first.
        memory: peak memory in bytes, of the device, or of this process on the CPU.
    """

    batch_size: int
    images_per_second: float
    memory: int


def batch_size(cfg: DictConfig, data: FishDataModule, start: int, steps: int) -> int:
    """Train some steps with batches of doubled sizes until they do not fit, or hold all training images.

    On a CPU, where the system ends a process that takes too much memory, a size is not tried if it is expected, from
    the two before it, to take more than 90 % of the memory.

    Args:
        cfg: the whole config.
        data: the run's data module, after ``setup``.
        start: first batch size.
        steps: number of steps of each trial, 2 or more.

    Returns:
        The largest batch size that fits.

    Raises:
        UserError: not even the first size fits.
    """
    images, on_gpu = len(data.catalog.indices("train")), uses_cuda(cfg.trainer.accelerator)
    sizes = [size for power in range(31) if (size := start * 2**power) <= images] or [images]
    trials: list[Trial] = []
    limit = f"there are {images:,} training images"
    for size in sizes:
        if len(trials) > 1 and not on_gpu and expected_memory(trials) > OF_MEMORY * memory():
            limit = f"{size} would take about {byte_size(expected_memory(trials))} of {byte_size(memory())}"
            break
        trial = _trial(cfg, data, size, steps)
        if trial is None:
            limit = f"{size} does not fit"
            break
        trials.append(trial)
        print(f"{size:>6}  {trial.images_per_second:8,.0f} images/s  {byte_size(trial.memory):>8}", flush=True)
    if not trials:
        raise UserError(f"tune=batch_size: {limit} in memory\nuse smaller images, a smaller network or tune.start=1")
    found = trials[-1].batch_size
    fastest = max(trials, key=lambda trial: trial.images_per_second)
    rows = list(map(vars, trials))
    figure = batch_size_figure(*([row[name] for row in rows] for name in rows[0]))
    plot = _write(cfg, {"tune": "batch_size", "data.batch_size": found, "trials": rows}, figure, "batch_size")
    print(f"{limit}; {fastest.batch_size} is fastest ({fastest.images_per_second:,.0f} images/s)")
    print(f"plot  {plot}\ndata.batch_size={found}", flush=True)
    return found


def expected_memory(trials: Sequence[Trial]) -> int:
    """Return the memory that twice the last batch size is expected to take, in bytes: it grows linearly."""
    before, last = trials[-2:]
    return last.memory + 2 * max(0, last.memory - before.memory)


def _trial(cfg: DictConfig, data: FishDataModule, size: int, steps: int) -> Trial | None:
    """Return the result of some steps; None if they do not fit."""
    data.batch_size = size
    clock = _Clock()
    try:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        _trainer(cfg, steps, clock).fit(build_model(cfg, data), datamodule=data)
        return Trial(size, clock.images / clock.seconds, peak_memory(uses_cuda(cfg.trainer.accelerator)))
    except RuntimeError as error:
        if not is_oom_error(error):
            raise
        return None
    finally:
        garbage_collection_cuda()


class _Clock(L.Callback):
    """Times the steps after the first, which also creates the state of the optimizer."""

    def __init__(self) -> None:
        self.images, self.seconds, self._began = 0, 0.0, 0.0

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count a batch."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        if self._began:
            self.images += len(batch["label"])
            self.seconds = now - self._began
        else:
            self._began = now


def _trainer(cfg: DictConfig, steps: int, callback: L.Callback) -> L.Trainer:
    """Create a trainer for some steps as the run computes them, without validation, logger or checkpoint."""
    if in_multirun():
        raise UserError("tune does not run in a sweep: drop -m and sweep")
    chosen = {name: cfg.callbacks[name] for name in OF_A_STEP if cfg.callbacks.get(name) is not None}
    if "freeze" in chosen and chosen["freeze"].get("epochs") is not None:
        del chosen["freeze"]  # most of the run trains all layers, with their gradients and optimizer states
    kept = [instantiate(callback) for callback in chosen.values()]
    limits = {"max_steps": steps, "max_epochs": -1, "limit_val_batches": 0, "max_time": None, "min_epochs": None}
    trainer = build_trainer(OmegaConf.merge(cfg.trainer, limits), [*kept, callback])  # type: ignore[arg-type]
    if trainer.world_size > 1:
        raise UserError(
            f"tune requires trainer.devices=1: {trainer.world_size} processes train\n"
            f"like one with {trainer.world_size} times the data.batch_size"
        )
    return trainer


def _write(cfg: DictConfig, found: dict[str, Any], figure: Figure, name: str) -> str:
    """Write ``tune.json`` and a plot; return the path of the plot, as it is shown."""
    write_json(Path(cfg.paths.output, "tune.json"), found)
    plot = Path(cfg.paths.output, "plots", f"{name}.png")
    save(figure, plot)
    return shown(plot)
