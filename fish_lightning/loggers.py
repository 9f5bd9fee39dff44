"""The CSV logger of ``conf/logger``: Lightning's, taught to go on with the file of an interrupted run."""

import csv
from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # type: ignore[import-untyped]

from fish_lightning.files import whole_file

Row = dict[str, Any]


class ResumableCSVLogger(CSVLogger):
    """Keeps the rows of ``metrics.csv`` when a run goes on in its folder; Lightning's logger deletes them."""

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """Lightning's writer, going on with the file."""
        if self._experiment is None:
            self._experiment = _GoingOn(self.log_dir)
        return self._experiment

    def forget_from(self, step: int, within_epoch: bool = False) -> None:
        """Drop the rows of ``step`` and later: they were logged after the checkpoint that a run resumes from.

        Args:
            step: optimizer steps that the checkpoint is after.
            within_epoch: what followed the last of them, a validation or an early end, comes again too.
        """
        self.experiment.keep_before(step, within_epoch)

    def has(self, row: Row, step: int) -> bool:
        """Whether all columns of ``row`` were logged at ``step``."""
        self.save()
        return any(int(known["step"]) == step and set(row) <= set(known) for known in _rows(self.experiment.file))


class _GoingOn(ExperimentWriter):
    """Writes rows at the end of the file that is there; a new column rewrites it, whole or not at all."""

    def __init__(self, log_dir: str) -> None:
        self.file = Path(log_dir, self.NAME_METRICS_FILE)
        super().__init__(log_dir)
        if self.file.is_file():
            self._write(_rows(self.file))  # without a line that was cut short when a run was killed

    def keep_before(self, step: int, within_epoch: bool) -> None:
        """Drop the rows of ``step`` and later, and what is no step's of the one before."""

        def stays(row: Row) -> bool:
            of_epoch = any(key == "train/loss" or key.startswith("val/") for key in row)
            return int(row["step"]) < step - (within_epoch and of_epoch)

        self.save()
        if self.file.is_file():
            self._write([row for row in _rows(self.file) if stays(row)])

    def _check_log_dir_exists(self) -> None:
        """Lightning deletes the former file here."""

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        self._write(_rows(self.file), fieldnames)

    def _write(self, rows: list[Row], fieldnames: list[str] | None = None) -> None:
        """Replace the file; without a row, it has no header either."""
        self.metrics_keys = sorted(set().union(*rows)) if fieldnames is None else fieldnames
        if not rows:
            self.file.unlink()
            return
        with whole_file(self.file) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
            lines = csv.DictWriter(stream, self.metrics_keys)
            lines.writeheader()
            lines.writerows(rows)


class ForgetLaterRows(L.Callback):
    """On resume, drops from ``metrics.csv`` and TensorBoard what was logged after the checkpoint: it comes again.

    What Lightning logs of a step or an epoch, it logs after the checkpoint of it. So the checkpoint carries that row,
    for a run that was killed in between.
    """

    def __init__(self) -> None:
        self._resumed: tuple[int, Row | None, bool] | None = None
        self._begun = False

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The validation before training begins a run."""
        if trainer.state.fn == "validate":
            self._begin(trainer)

    def _begin(self, trainer: L.Trainer) -> None:
        """A run that does not go on with a checkpoint begins anew, also in the folder of one that came to nothing."""
        if not self._begun and trainer.is_global_zero:
            for logger in trainer.loggers:
                if isinstance(logger, ResumableCSVLogger):
                    logger.forget_from(0)
        self._begun = True

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Note the row to come, and bring to the disk what TensorBoard holds back."""
        connector = trainer._logger_connector
        if trainer._results is None:
            return
        step = connector._first_loop_iter is not None  # a step is saved, not an epoch
        if not step or connector.should_update_logs:
            row = {name: float(value) for name, value in connector.metrics["log"].items()}
            checkpoint["next_row"] = row | {"epoch": trainer.current_epoch}
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
                logger.experiment.flush()

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take over the number of steps done, the row, and whether it is a step that was saved or an epoch."""
        batches = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]
        within_epoch = batches["completed"] < batches["processed"]
        self._resumed = checkpoint["global_step"], checkpoint.get("next_row"), within_epoch

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Before the first row; called also where a run has ended and only its test is done once more."""
        if self._resumed is None:
            self._begin(trainer)
        elif trainer.is_global_zero:
            self._go_on(trainer, *self._resumed)

    def _go_on(self, trainer: L.Trainer, step: int, row: Row | None, within_epoch: bool) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, ResumableCSVLogger):
                logger.forget_from(step, within_epoch)
                if row and not logger.has(row, step - 1):
                    logger.log_metrics(row, step - 1)
                    logger.save()
            elif isinstance(logger, TensorBoardLogger):
                start = Event(step=step, session_log=SessionLog(status=SessionLog.START))
                logger.experiment._get_file_writer().add_event(start, step)  # forgets later points; has no other name
                if row:
                    logger.log_metrics(row, step - 1)  # a point drawn twice is not seen


def _rows(file: Path) -> list[Row]:
    """The rows of a CSV file without their empty cells; none where there is no file. A line cut short is left out."""
    if not file.is_file():
        return []
    text = file.read_text(encoding="utf-8")
    lines = text[: text.rfind("\n") + 1].splitlines()
    return [{key: value for key, value in row.items() if value} for row in csv.DictReader(lines)]
