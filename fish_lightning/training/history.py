"""The history of a run: one row per epoch, printed as it comes, kept for plots and the summary."""

import sys
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from fish_lightning.models.classifier import FishClassifier

Row = dict[str, float | None]
VALIDATED = ("loss", "accuracy", "macro_f1")


class History(Callback):
    """Records and prints one row per epoch; row 0 is the validation before the first step.

    Attributes:
        rows: dicts of ``epoch``, ``lr``, ``train_loss``, ``train_accuracy``, ``val_loss``, ``val_accuracy``,
            ``val_macro_f1`` and ``seconds``.
        seconds: time spent in epochs, including validation and all parts of an interrupted run.
        train_seconds: time spent in training steps.
        train_images: number of images trained on in that time.
        validated: metrics of the epoch's last validation; empty before there is one.
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
        """Training images per second, without validation; None before the first step."""
        return self.train_images / self.train_seconds if self.train_seconds else None

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Record the metrics; a validation before the fit is row 0."""
        measured = {f"val_{key}": trainer.callback_metrics.get(f"val/{key}") for key in VALIDATED}
        self.validated = {key: None if value is None else float(value) for key, value in measured.items()}
        if trainer.state.fn == "validate":
            self._add(trainer, {"epoch": 0, "lr": None, "train_loss": None, "train_accuracy": None, "seconds": None})

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock, also where a run is resumed within an epoch."""
        self._clock = time.perf_counter()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Record when the epoch starts; Lightning does not call this where a run is resumed within an epoch."""
        self.seconds_before_epoch = self.seconds
        self.validated = {}

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count images and the time they took."""
        self.train_seconds += self._tick()
        self.train_images += len(batch["label"]) * trainer.world_size

    def _tick(self) -> float:
        """Return the seconds since the last tick, and add them to the total."""
        now = time.perf_counter()
        passed, self._clock = now - self._clock, now
        self.seconds += passed
        return passed

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Add the epoch's row; its validation is done by now."""
        loss, accuracy = (trainer.callback_metrics.get(f"train/{name}") for name in ("loss", "accuracy"))
        if loss is None and isinstance(pl_module, FishClassifier):  # resumed after the last step
            loss, accuracy = (mean.compute() for mean in pl_module.train_means.values())
        self._tick()
        self._add(
            trainer,
            {
                "epoch": trainer.current_epoch + 1,
                "lr": max(group["lr"] for group in trainer.optimizers[0].param_groups),  # of the last block
                "train_loss": None if loss is None else float(loss),
                "train_accuracy": None if accuracy is None else float(accuracy),
                "seconds": self.seconds - self.seconds_before_epoch,
            },
        )

    def _add(self, trainer: L.Trainer, row: Row) -> None:
        row |= dict.fromkeys(f"val_{key}" for key in VALIDATED) | self.validated
        self.rows.append(row)
        trainer.print(line(row, trainer.max_epochs))
        sys.stdout.flush()  # files and pipes are buffered

    def state_dict(self) -> dict[str, Any]:
        """Return rows and clocks, so that a resumed run has one history."""
        kept = ("rows", "seconds", "train_seconds", "train_images", "seconds_before_epoch", "validated")
        return {name: getattr(self, name) for name in kept}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        for name, value in state_dict.items():
            setattr(self, name, value)


def line(row: Row, epochs: int | None) -> str:
    """Return a row as printed: ``epoch 3/6  lr 8.10e-03  train loss 0.4120  val loss 0.3550  val accuracy …``."""

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
        show("val accuracy", "val_accuracy", "{:6.2f}%", 100),
        show("", "seconds", "{:.1f} s"),
    ]
    return "  ".join(parts).rstrip()
