"""Predictions of single images: table, CSV, JSON and contact sheet."""

import csv
import json
from collections import Counter
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
from fish_lightning.names import ENCODE_ERRORS, path_cell, printable, shortened, text_cell
from fish_lightning.plotting import figures
from fish_lightning.plotting.thumbnails import thumbnail

ROWS = 20  # files and classes in the terminal at most
LISTED = 100  # classes whose probabilities are kept


@dataclass(frozen=True)
class PredictionRow:
    """The prediction for one file.

    Attributes:
        path: as the user gave or found it.
        probabilities: of each class (of many, the ``LISTED`` most probable), 0 to 1, most probable first; empty if the
            file could not be read.
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
            order = np.argsort(-probabilities, kind="stable")[:LISTED]
            rows.append(PredictionRow(str(path), {class_names[i]: float(probabilities[i]) for i in order}))
    return rows


def _why_unreadable(path: Path) -> str:
    try:
        decode(path)
    except UnreadableImage as error:
        return str(error)
    return f"{path}: could not be read during prediction, but can be read now"


def write_predictions(folder: Path, rows: Sequence[PredictionRow], catalog: Catalog, pictures: int) -> str:
    """Write ``predictions.csv``, ``predictions.json`` and a ``contact_sheet.png`` of up to ``pictures`` images.

    Returns:
        The names of the files, as printed.
    """
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
    files = "predictions.csv, predictions.json"
    shown = rows[:pictures]
    if not shown:
        return files
    part = f"{len(shown):,} of {len(rows):,} files" if len(shown) < len(rows) else ""
    figure = figures.picture_figure(
        [thumbnail(catalog.root / row.path) for row in shown],
        [f"{shortened(Path(row.path).name)}\n{_verdict(row)}" for row in shown],
        [figures.BAD if row.error else figures.PLAIN for row in shown],
        title=part,
    )
    figures.save(figure, folder / "contact_sheet.png")
    return f"{files}, contact_sheet.png" + (f": {part}" if part else "")


def _verdict(row: PredictionRow) -> str:
    name, probability = row.ranked(0)
    return "unreadable" if probability is None else f"{shortened(name)} {probability:.0%}"


def prediction_table(rows: Sequence[PredictionRow]) -> str:
    """Return the predictions as a table for the terminal; of many, the first ``ROWS`` and the number for each class."""
    lines = _aligned([("path", "prediction", "probability", "runner-up"), *map(_cells, rows[:ROWS])], right=2)
    if len(rows) > ROWS:
        lines += [f"{ROWS} of {len(rows):,} files; all in predictions.csv", "", *_counts(rows)]
    return "\n".join(lines)


def _cells(row: PredictionRow) -> tuple[str, str, str, str]:
    path = printable(row.path)
    (prediction, probability), (second, runner_up) = row.ranked(0), row.ranked(1)
    if row.error:
        return (path, "error", "", printable(row.error).removeprefix(f"{path}: "))
    return (path, printable(prediction), f"{probability:.1%}", f"{printable(second)} {runner_up:.1%}")


def _counts(rows: Sequence[PredictionRow]) -> list[str]:
    """Return how many files are of each class, the most frequent ones first, and how many are unreadable."""
    counts = Counter(row.ranked(0)[0] for row in rows if not row.error)
    cells = [(shortened(printable(name)), f"{count:,}") for name, count in counts.most_common(ROWS)]
    lines = _aligned([("class", "files"), *cells], right=1)
    if len(counts) > ROWS:
        lines.append(f"and {len(counts) - ROWS:,} other classes")
    errors = [row.error for row in rows if row.error]
    if errors:
        lines.append(f"unreadable: {len(errors):,}, such as {printable(errors[0])}")
    return lines


def _aligned(cells: Sequence[tuple[str, ...]], right: int) -> list[str]:
    """Return rows of a table whose columns are aligned, that one to the right."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            text.rjust(width) if column == right else text.ljust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]
