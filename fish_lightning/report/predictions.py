"""Predictions of single images: table, CSV, JSON and contact sheet."""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fish_lightning.data.catalog import Catalog
from fish_lightning.data.dataset import UNREADABLE
from fish_lightning.data.decoding import UnreadableImage, decode
from fish_lightning.evaluation.arrays import require_finite, softmax
from fish_lightning.files import whole_file
from fish_lightning.names import ENCODE_ERRORS, path_cell, printable, text_cell
from fish_lightning.plotting import figures
from fish_lightning.plotting.thumbnails import thumbnail


@dataclass(frozen=True)
class PredictionRow:
    """The prediction for one file.

    Attributes:
        path: as the user gave or found it.
        probabilities: of each class, 0 to 1, most probable first; empty if the file could not be read.
        error: why it could not be read, or None.
    """

    path: str
    probabilities: dict[str, float]
    error: str | None = None

    def ranked(self, place: int) -> tuple[str, float | None]:
        """Return class and probability at a place, 0 for the most probable; ``("", None)`` if there is none."""
        ranking = list(self.probabilities.items())
        return ranking[place] if place < len(ranking) else ("", None)


def prediction_rows(
    catalog: Catalog, batches: Sequence[Sequence[npt.NDArray[Any]]], class_names: Sequence[str]
) -> list[PredictionRow]:
    """Return one row per file, in catalog order.

    Args:
        catalog: the N input files.
        batches: of :meth:`fish_lightning.models.classifier.FishClassifier.predict_step`, N images in all.
        class_names: in label order.
    """
    rows = []
    _, labels, logits, _ = (np.concatenate(column) for column in zip(*batches, strict=True))
    require_finite(logits[labels != UNREADABLE], "logits")
    for path, label, probabilities in zip(catalog.paths, labels, softmax(np.nan_to_num(logits)), strict=True):
        if label == UNREADABLE:
            rows.append(PredictionRow(str(path), {}, _why_unreadable(catalog.root / str(path))))
        else:
            order = np.argsort(-probabilities, kind="stable")
            rows.append(PredictionRow(str(path), {class_names[i]: float(probabilities[i]) for i in order}))
    return rows


def _why_unreadable(path: Path) -> str:
    try:
        decode(path)
    except UnreadableImage as error:
        return str(error)
    return f"{path}: could not be read during prediction, but can be read now"


def write_predictions(folder: Path, rows: Sequence[PredictionRow], catalog: Catalog, pictures: int) -> None:
    """Write ``predictions.csv``, ``predictions.json`` and a ``contact_sheet.png`` of up to ``pictures`` images."""
    with (
        whole_file(folder / "predictions.csv") as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors=ENCODE_ERRORS) as stream,
    ):
        lines = csv.writer(stream)
        lines.writerow(("path", "prediction", "probability", "runner_up", "runner_up_probability", "error"))
        for row in rows:
            ranked = [(text_cell(name), probability) for name, probability in (row.ranked(0), row.ranked(1))]
            lines.writerow((path_cell(row.path), *ranked[0], *ranked[1], row.error and text_cell(row.error)))
    with whole_file(folder / "predictions.json") as temporary:
        content = [
            {
                "path": row.path,
                "prediction": row.ranked(0)[0] or None,
                "probability": row.ranked(0)[1],
                "probabilities": row.probabilities,
                "error": row.error,
            }
            for row in rows
        ]
        # Bytes that are not UTF-8 become JSON's own escapes, from which a reader in Python gets the name back.
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    shown = rows[:pictures]
    if shown:
        figure = figures.picture_figure(
            [thumbnail(catalog.root / row.path) for row in shown],
            [
                f"{Path(row.path).name}\n"
                + ("unreadable" if row.error else f"{row.ranked(0)[0]} {row.ranked(0)[1]:.0%}")
                for row in shown
            ],
            [figures.BAD if row.error else figures.PLAIN for row in shown],
        )
        figures.save(figure, folder / "contact_sheet.png")


def prediction_table(rows: Sequence[PredictionRow]) -> str:
    """Return the predictions as a table for the terminal."""
    cells = [("path", "prediction", "probability", "runner-up")]
    for row in rows:
        if row.error:
            cells.append((printable(row.path), "error", "", printable(row.error)))
        else:
            (prediction, probability), (second, runner_up) = row.ranked(0), row.ranked(1)
            named = (printable(row.path), printable(prediction), f"{probability:.1%}")
            cells.append((*named, f"{printable(second)} {runner_up:.1%}"))
    widths = [max(len(line[column]) for line in cells) for column in range(3)]
    return "\n".join(
        f"{path:<{widths[0]}}  {prediction:<{widths[1]}}  {probability:>{widths[2]}}  {last}"
        for path, prediction, probability, last in cells
    )
