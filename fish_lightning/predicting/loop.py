"""What the prediction loop of Lightning calls: the model on images of one size, the writer of parts, the bar."""

import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from types import FrameType
from typing import Any

import lightning as L
import numpy as np
import numpy.typing as npt
from lightning.pytorch.callbacks import Callback, TQDMProgressBar

from fish_lightning.errors import UserError
from fish_lightning.models.trained import TrainedModel
from fish_lightning.predicting.parts import Parts
from fish_lightning.predicting.rows import ROWS, PredictionRow, prediction_rows
from fish_lightning.resume.signals import Stopped, end_other_rank, take_signals

#: Seconds between lines that say how far it is, where there is no progress bar.
PAUSE = 30
Arrays = tuple[npt.NDArray[Any], ...]
Batch = list[dict[str, Any]]


class PredictionModule(L.LightningModule):
    """A model whose batches are groups of images of one size (:class:`fish_lightning.data.inputs.InputImages`).

    Args:
        model: model whose ``predict_step`` returns indices, labels, logits and features of a group, each (n, ...).
    """

    def __init__(self, model: L.LightningModule) -> None:
        super().__init__()
        self.model = model
        self.allow_zero_length_dataloader_with_multiple_devices = True

    def predict_step(self, batch: Batch, batch_idx: int) -> Arrays:
        """Return indices, labels, logits and features of a batch, in the order of its files."""
        groups = [self.model.predict_step(group, batch_idx) for group in batch]
        columns = [np.concatenate(column) for column in zip(*groups, strict=True)]
        order = np.argsort(columns[0], kind="stable")
        return tuple(column[order] for column in columns)


class PartWriter(Callback):
    """Turns each batch into rows, and writes a part as soon as it has all of them.

    The first signal (Ctrl-C, SIGTERM) ends the run after the batch that is being predicted; the rows of its part so far
    are written. A second one ends it immediately.

    Args:
        parts: parts of the run.
        trained: the model.
        resume: the command that resumes the run.
        table: function that returns the first rows as a table for the terminal.

    Attributes:
        shown: whether the first ``ROWS`` rows have been printed.
    """

    def __init__(
        self, parts: Parts, trained: TrainedModel, resume: str, table: Callable[[Sequence[PredictionRow]], str]
    ) -> None:
        self.parts, self.trained, self.resume, self.table = parts, trained, resume, table
        self.shown = False
        self._first: list[PredictionRow] = []
        self._part: int | None = None  # the unfinished one
        self._rows: list[PredictionRow] = []
        self._received: int | None = None
        self._done = 0
        self._started = self._said = self._latest = time.monotonic()

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take over the signals: Lightning's handlers lose the unfinished part."""
        self._started = self._said = time.monotonic()
        take_signals(self._note)

    def on_predict_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Add the rows of a batch, all of one part.

        Raises:
            Stopped: a signal was received.
        """
        indices, _, logits, features = outputs
        errors = {i: said for group in batch for i, said in zip(group["index"].tolist(), group["error"], strict=True)}
        paths, said = [self.parts.files[i] for i in indices.tolist()], [errors[i] for i in indices.tolist()]
        rows = prediction_rows(paths, said, logits, features, self.trained.module.class_names, self.trained.calibration)
        self._add(int(indices[0]), rows)
        self._done += len(rows)
        self._latest = time.monotonic()
        if trainer.is_global_zero:
            self._show(trainer, rows)
        if self._received is not None:
            self._write()
            end_other_rank(trainer, self._received)
            raise self._stopped(self._received)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Keep the rows of the unfinished part, if they can be written."""
        with suppress(OSError, UserError):
            self._write()

    def _add(self, first: int, rows: Sequence[PredictionRow]) -> None:
        part = first // self.parts.size
        if part != self._part:  # which another run may have begun
            self._part, self._rows = part, list(self.parts.rows([part]))[: first - self.parts.indices(part).start]
        self._rows += rows
        if len(self._rows) == len(self.parts.indices(part)):
            self._write()

    def _write(self) -> None:
        """Write the rows of the unfinished part."""
        if self._part is not None:
            part, self._part = self._part, None
            self.parts.write(part, self._rows)
            self._rows = []

    def _show(self, trainer: L.Trainer, rows: Sequence[PredictionRow]) -> None:
        """Print the first rows, and without a progress bar, from time to time, how far it is."""
        bar: Any = trainer.progress_bar_callback
        if not self.shown:
            self._first += rows
            if len(self._first) >= ROWS:
                (print if bar is None else bar.print)(self.table(self._first[:ROWS]))
                self.shown = True
        if bar is None and self._latest - self._said > PAUSE:
            self._said, total, rate = self._latest, images_of(trainer), self._rate()
            left = timedelta(seconds=round((total - self._done) / rate))
            print(f"{self._done:,} of {total:,} images, {rate:,.0f} images/s, {left} left", flush=True)

    def speed(self) -> str:
        """Return how many images were predicted in how many seconds, as printed; ``""`` if none were."""
        return f"\n{self._done:,} images in {self._latest - self._started:.1f} s, {self._rate():,.0f} images/s" * bool(
            self._done
        )

    def _rate(self) -> float:
        return self._done / max(self._latest - self._started, 1e-9)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._received is not None:
            raise self._stopped(number, " immediately")
        self._received = number
        print("\nstopping after this batch is written (press Ctrl-C again to stop immediately)", flush=True)

    def _stopped(self, number: int, how: str = "") -> Stopped:
        advice = f"the rows so far are in {self.parts.folder}; resume:  {self.resume}"
        return Stopped(f"stopped by {signal.Signals(number).name}{how}\n{advice}", number)


def images_of(trainer: L.Trainer) -> int:
    """Return the number of images that this process predicts."""
    loader: Any = trainer.predict_dataloaders
    return sum(map(len, loader.sampler))


class ImagesBar(TQDMProgressBar):
    """Lightning's progress bar, in images: how many a second, and the time left."""

    def init_predict_tqdm(self) -> Any:
        """Return the bar."""
        bar: Any = super().init_predict_tqdm()
        bar.unit, bar.total = " images", images_of(self.trainer)
        return bar

    def on_predict_batch_start(self, *_: Any) -> None:
        """Leave the bar as it is: Lightning would count batches."""

    def on_predict_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *_: Any) -> None:
        """Add the images of a batch."""
        bar: Any = self.predict_progress_bar
        bar.update(len(outputs[0]))
