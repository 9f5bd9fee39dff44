"""The rows of a run, one an epoch: kept for plots and summary, printed as they come."""

import sys
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from fish_lightning.models.classifier import FishClassifier

Row = dict[str, float | None]
VALIDATED = ("loss", "accuracy", "macro_f1")


class History(Callback):
    """Records and prints one row an epoch; row 0 is the validation before the first step.

    Attributes:
        rows: ``epoch``, ``lr``, ``train_loss``, ``val_loss``, ``val_accuracy``, ``val_macro_f1``, ``seconds``.
        seconds: time in epochs, validation included; of all parts of an interrupted run.
        train_seconds: time in training steps alone.
        train_images: images trained on in that time.
        validated: what the epoch's last validation measured; nothing before there is one.
    """

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.seconds = 0.0
        self.train_seconds = 0.0
        self.train_images = 0
        self.seconds_before_epoch = 0.0
        self.validated: Row = {}
        self._clock = 0.0

    @property
    def images_per_second(self) -> float | None:
        """Training images a second, without validation; None before the first step."""
        return self.train_images / self.train_seconds if self.train_seconds else None

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note what was measured; row 0, when validation runs on its own before the fit."""
        measured = {f"val_{key}": trainer.callback_metrics.get(f"val/{key}") for key in VALIDATED}
        self.validated = {key: None if value is None else float(value) for key, value in measured.items()}
        if trainer.state.fn == "validate":
            self._add(trainer, {"epoch": 0, "lr": None, "train_loss": None, "seconds": None})

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock, also in the middle of an epoch that a run goes on with."""
        self._clock = time.perf_counter()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note when the epoch begins; Lightning leaves this out where a run goes on in mid-epoch."""
        self.seconds_before_epoch = self.seconds
        self.validated = {}

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count images and the time they took."""
        self.train_seconds += self._tick()
        self.train_images += len(batch["label"]) * trainer.world_size

    def _tick(self) -> float:
        """Seconds since the last tick, added to all seconds."""
        now = time.perf_counter()
        passed, self._clock = now - self._clock, now
        self.seconds += passed
        return passed

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The epoch's row; Lightning has run its validation by now."""
        loss = trainer.callback_metrics.get("train/loss")
        if loss is None and isinstance(pl_module, FishClassifier):  # all steps were done before the run was resumed
            loss = pl_module.train_loss.compute()
        self._tick()
        self._add(
            trainer,
            {
                "epoch": trainer.current_epoch + 1,
                "lr": trainer.optimizers[0].param_groups[0]["lr"],
                "train_loss": None if loss is None else float(loss),
                "seconds": self.seconds - self.seconds_before_epoch,
            },
        )

    def _add(self, trainer: L.Trainer, row: Row) -> None:
        row |= dict.fromkeys(f"val_{key}" for key in VALIDATED) | self.validated
        self.rows.append(row)
        trainer.print(line(row, trainer.max_epochs))
        sys.stdout.flush()  # a file or a pipe gets its line now, not when the run is over

    def state_dict(self) -> dict[str, Any]:
        """Rows and clocks, so that a resumed run's plots have no seam."""
        kept = ("rows", "seconds", "train_seconds", "train_images", "seconds_before_epoch", "validated")
        return {name: getattr(self, name) for name in kept}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        for name, value in state_dict.items():
            setattr(self, name, value)


def line(row: Row, epochs: int | None) -> str:
    """A row as it is printed: ``epoch 3/6  lr 0.0081  train loss 0.412  val loss 0.355  val accuracy 88.2 %  41 s``."""

    def show(label: str, key: str, pattern: str, factor: float = 1.0) -> str:
        value = row.get(key)
        return f"{label} {pattern.format(value * factor)}" if value is not None else ""

    of = f"/{epochs}" if epochs and epochs > 0 else ""
    head = "before training" if row["epoch"] == 0 else f"epoch {row['epoch']:.0f}{of}"
    parts = [
        f"{head:<15}",
        f"{show('lr', 'lr', '{:.2e}'):<11}",
        f"{show('train loss', 'train_loss', '{:.4f}'):<17}",
        show("val loss", "val_loss", "{:.4f}"),
        show("val accuracy", "val_accuracy", "{:6.2f} %", 100),
        show("", "seconds", "{:.1f} s"),
    ]
    return "  ".join(parts).rstrip()
