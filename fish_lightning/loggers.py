"""The CSV logger of ``conf/logger``: Lightning's, taught to go on with the file of an interrupted run."""

import csv
from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger


class ResumableCSVLogger(CSVLogger):
    """Keeps the rows of ``metrics.csv`` when a run goes on in its folder; Lightning's logger deletes them."""

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """Lightning's writer, holding the rows that are in the file already."""
        if self._experiment is None:
            earlier = _rows(Path(self.log_dir, "metrics.csv"))
            writer: Any = super().experiment
            writer.metrics.extend(earlier)
        return self._experiment

    def forget_from(self, step: int) -> None:
        """Drop the rows of ``step`` and later: they were logged after the checkpoint that a run resumes from."""
        writer = self.experiment
        if not isinstance(self._experiment, type(None)):
            self.save()
            kept = [row for row in _rows(Path(self.log_dir, "metrics.csv")) if int(row["step"]) < step]
            Path(self.log_dir, "metrics.csv").unlink(missing_ok=True)
            writer.metrics, writer.metrics_keys = kept, []
            self.save()


class ForgetLaterRows(L.Callback):
    """On resume, drops from ``metrics.csv`` what was logged after the checkpoint: it will be logged again."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The step counter has been restored by now."""
        if trainer.ckpt_path is not None and trainer.is_global_zero:
            for logger in trainer.loggers:
                if isinstance(logger, ResumableCSVLogger):
                    logger.forget_from(trainer.global_step)


def _rows(file: Path) -> list[dict[str, Any]]:
    """The rows of a CSV file without their empty cells; none where there is no file."""
    if not file.is_file():
        return []
    with file.open(newline="", encoding="utf-8") as stream:
        return [{key: value for key, value in row.items() if value} for row in csv.DictReader(stream)]
