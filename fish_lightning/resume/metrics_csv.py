"""``metrics.csv``: a CSV logger whose file a resumed run continues, without duplicate or missing rows."""

import csv
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from fish_lightning import compat
from fish_lightning.files import atomic_write
from fish_lightning.models.classifier import FishClassifier

Row = dict[str, Any]


class ResumableCSVLogger(Logger):
    """Writes one row per call to ``metrics.csv``; Lightning's ``CSVLogger`` deletes the file of an interrupted run.

    Rows are appended; a new column rewrites the file atomically.

    Args:
        save_dir: the run folder.
    """

    name = version = ""  # a run has one folder

    def __init__(self, save_dir: str | Path) -> None:
        super().__init__()
        self.file = Path(save_dir, "metrics.csv")
        self._pending: list[Row] = []
        self._columns: list[str] | None = None  # of the file; None before it is read

    @property
    def log_dir(self) -> str:
        """Return the run folder."""
        return str(self.file.parent)

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Log nothing: the config is in ``.hydra/config.yaml``."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Add a row; Lightning calls :meth:`save` after it."""
        self._pending.append(metrics | {"step": step or 0})

    @rank_zero_only
    def save(self) -> None:
        """Write the pending rows."""
        if not self._pending:
            return
        if self._columns is None:
            self._rewrite(_read(self.file))  # without a line cut off by a kill
        assert self._columns is not None
        new = sorted(set().union(*self._pending) - set(self._columns))
        if new or not self.file.is_file():
            self._rewrite([*_read(self.file), *self._pending])
        else:
            with self.file.open("a", newline="", encoding="utf-8") as stream:
                csv.DictWriter(stream, self._columns).writerows(self._pending)
        self._pending.clear()

    @rank_zero_only
    def drop_from(self, step: int, within_epoch: bool = False) -> None:
        """Drop the rows of ``step`` and later: they were logged after the checkpoint.

        Args:
            step: number of optimizer steps before the checkpoint.
            within_epoch: whether to drop also what was logged after the last of these steps, since a validation is
                repeated.
        """

        def stays(row: Row) -> bool:
            of_epoch = any(key == "train/loss" or key.startswith("val/") for key in row)
            return int(row["step"]) < step - (within_epoch and of_epoch)

        self.save()
        self._rewrite([row for row in _read(self.file) if stays(row)])

    def has(self, row: Row, step: int) -> bool:
        """Return whether all columns of ``row`` were logged at ``step``."""
        self.save()
        return any(int(known["step"]) == step and set(row) <= set(known) for known in _read(self.file))

    def _rewrite(self, rows: list[Row]) -> None:
        """Replace the file; remove it where there are no rows."""
        self._columns = sorted(set().union(*rows))
        if not rows:
            self.file.unlink(missing_ok=True)
            return
        with atomic_write(self.file) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
            lines = csv.DictWriter(stream, self._columns)
            lines.writeheader()
            lines.writerows(rows)


class DropLaterRows(L.Callback):
    """On resume, drops from ``metrics.csv`` and TensorBoard what was logged after the checkpoint and is logged again.

    Lightning logs the metrics of a step or an epoch after its checkpoint was saved. The checkpoint contains that row,
    in case the run is killed in between.
    """

    def __init__(self) -> None:
        self._from: tuple[int, Row | None, bool] = (0, None, False)  # steps, next row, whether within an epoch
        self._resumed = self._begun = False

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Drop rows where a run begins with a validation."""
        if trainer.state.fn == "validate":
            self.on_fit_start(trainer, pl_module)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Store the next row, and write what the loggers have buffered."""
        row = compat.metrics_to_be_logged(trainer)
        if row is not None:
            checkpoint["next_row"] = row | {"epoch": trainer.current_epoch}
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
                logger.experiment.flush()
            logger.save()

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Read the number of steps, the next row, and whether the run was saved within an epoch."""
        self._from = checkpoint["global_step"], checkpoint.get("next_row"), compat.is_saved_within_epoch(checkpoint)
        self._resumed, self._begun = True, False

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Drop later rows; in a new run, all rows: its folder may be that of a run that has left no checkpoint.

        Also called where training is complete and only the test is repeated.
        """
        if self._begun or not trainer.is_global_zero:
            return
        self._begun = True
        step, row, within_epoch = self._from
        for logger in trainer.loggers:
            if isinstance(logger, ResumableCSVLogger):
                logger.drop_from(step, within_epoch)
                if row and not logger.has(row, step - 1):
                    logger.log_metrics(row, step - 1)
                    logger.save()
                continue
            if self._resumed and isinstance(logger, TensorBoardLogger):
                compat.forget_later_points(logger.experiment, step)
            if row:
                logger.log_metrics(row, step - 1)  # in TensorBoard a duplicate does not show; trackers skip it

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the training means of an epoch that had no step since the resume: Lightning has none."""
        if "train/loss" not in trainer.callback_metrics and isinstance(pl_module, FishClassifier):
            for name, mean in pl_module.train_means.items():
                pl_module.log(f"train/{name}", mean.compute())


def _read(file: Path) -> list[Row]:
    """Return the rows of a CSV file without empty cells, and without a last line that was cut off by a kill."""
    if not file.is_file():
        return []
    text = file.read_text(encoding="utf-8")
    lines = text[: text.rfind("\n") + 1].splitlines()
    return [{key: value for key, value in row.items() if value} for row in csv.DictReader(lines)]
