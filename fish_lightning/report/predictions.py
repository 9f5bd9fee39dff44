"""Predictions of single images: table, CSV, JSON and contact sheet."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fish_lightning.data.catalog import Catalog
from fish_lightning.data.dataset import UNREADABLE
from fish_lightning.data.decoding import UnreadableImage, decode
from fish_lightning.evaluation.arrays import require_finite
from fish_lightning.evaluation.stored_calibration import apply_calibration
from fish_lightning.files import csv_table, whole_file
from fish_lightning.names import path_cell, printable, shortened, text_cell
from fish_lightning.plotting import figures
from fish_lightning.plotting.thumbnails import thumbnail

ROWS = 20  # files and classes in the terminal at most
LISTED = 100  # classes whose probabilities are kept
UNCERTAIN, NONE = "uncertain", "none of these"  # verdicts


@dataclass(frozen=True)
class PredictionRow:
    """The prediction for one file.

    Attributes:
        path: as the user gave or found it.
        probabilities: of each class (of many, the ``LISTED`` most probable), 0 to 1, most probable first, before
            temperature scaling; empty if the file could not be read.
        calibrated: probability of the first of them after temperature scaling; None without a temperature.
        uncertain: whether the first of them is below the threshold; None without one.
        unknown: whether the image is of none of the classes; None without a threshold.
        error: why it could not be read, or None.
    """

    path: str
    probabilities: dict[str, float]
    calibrated: float | None = None
    uncertain: bool | None = None
    unknown: bool | None = None
    error: str | None = None

    @property
    def verdict(self) -> str:
        """``"none of these"``, else ``"uncertain"``, or ``""`` if the prediction stands."""
        return NONE if self.unknown else UNCERTAIN if self.uncertain else ""

    def ranked(self, place: int) -> tuple[str, float | None]:
        """Return class and probability at a place, 0 for the most probable; ``("", None)`` if there is none."""
        ranking = list(self.probabilities.items())
        return ranking[place] if place < len(ranking) else ("", None)


def prediction_rows(
    catalog: Catalog,
    batches: Sequence[Sequence[npt.NDArray[Any]]],
    class_names: Sequence[str],
    stored: Mapping[str, Any] | None = None,
) -> list[PredictionRow]:
    """Return one row per file, in catalog order.

    Args:
        catalog: the N input files.
        batches: of :meth:`fish_lightning.models.classifier.FishClassifier.predict_step`, N images in all.
        class_names: in label order.
        stored: content of the run's ``calibration.json``; None or empty: nothing is calibrated.
    """
    rows = []
    _, labels, logits, features = (np.concatenate(column) for column in zip(*batches, strict=True))
    require_finite(logits[labels != UNREADABLE], "logits")
    answers = apply_calibration(stored or {}, np.nan_to_num(logits), features)
    for i, (path, label, probabilities) in enumerate(zip(catalog.paths, labels, answers.probabilities, strict=True)):
        if label == UNREADABLE:
            rows.append(PredictionRow(str(path), {}, error=_why_unreadable(catalog.root / str(path))))
            continue
        order = np.argsort(-probabilities, kind="stable")[:LISTED]
        row = PredictionRow(
            str(path),
            {class_names[c]: float(probabilities[c]) for c in order},
            calibrated=None if answers.calibrated is None else float(answers.calibrated[i, order[0]]),
            uncertain=None if answers.uncertain is None else bool(answers.uncertain[i]),
            unknown=None if answers.unknown is None else bool(answers.unknown[i]),
        )
        rows.append(row)
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
    with csv_table(folder / "predictions.csv") as lines:
        columns = (
            "probability",
            "calibrated_probability",
            "runner_up",
            "runner_up_probability",
            "uncertain",
            "unknown",
        )
        lines.writerow(("path", "prediction", *columns, "error"))
        for row in rows:
            first, second = [(text_cell(name), p) for name, p in (row.ranked(0), row.ranked(1))]
            marks = [None if mark is None else int(mark) for mark in (row.uncertain, row.unknown)]
            error = row.error and text_cell(row.error)
            lines.writerow((path_cell(row.path), *first, row.calibrated, *second, *marks, error))
    with whole_file(folder / "predictions.json") as temporary:
        content = [
            {
                "path": row.path,
                "prediction": row.ranked(0)[0] or None,
                "probability": row.ranked(0)[1],
                "calibrated_probability": row.calibrated,
                "probabilities": row.probabilities,
                "uncertain": row.uncertain,
                "unknown": row.unknown,
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
        [f"{shortened(Path(row.path).name)}\n{_caption(row)}" for row in shown],
        [figures.BAD if row.error else COLORS[row.verdict] for row in shown],
        title=part,
    )
    figures.save(figure, folder / "contact_sheet.png")
    return f"{files}, contact_sheet.png" + (f": {part}" if part else "")


COLORS = {"": figures.PLAIN, UNCERTAIN: figures.UNCERTAIN, NONE: figures.NONE}


def _caption(row: PredictionRow) -> str:
    name, probability = row.ranked(0)
    if probability is None or row.verdict == NONE:
        return row.verdict or "unreadable"
    return f"{row.verdict}: " * bool(row.verdict) + f"{shortened(name)} {probability:.0%}"


def prediction_table(rows: Sequence[PredictionRow]) -> str:
    """Return the predictions as a table for the terminal; of many, the first ``ROWS`` and the number for each class.

    Columns for which nothing is calibrated are left out. The numbers for each class include the images that are marked
    as uncertain or as none of the classes; each of those has one verdict, as in the table.
    """
    titles = ("path", "prediction", "probability", "calibrated", "runner-up", "verdict")
    read = [row for row in rows if not row.error]
    known = {
        "calibrated": any(row.calibrated is not None for row in read),
        "verdict": any(row.uncertain is not None or row.unknown is not None for row in read),
    }
    kept = [column for column, title in enumerate(titles) if known.get(title, True)]
    cells = [titles, *map(_cells, rows[:ROWS])]
    lines = _aligned([tuple(line[column] for column in kept) for line in cells], right=(2, 3) if 3 in kept else (2,))
    if len(rows) > ROWS:
        lines += [f"{ROWS} of {len(rows):,} files; all in predictions.csv", "", *_counts(rows)]
    return "\n".join(lines)


def missing_thresholds(stored: Mapping[str, Any]) -> list[str]:
    """Return a line for each threshold that a run's ``calibration.json`` lacks."""
    lines = []
    if stored["selective"]["threshold"] is None:
        error = stored["selective"]["target_error"]
        lines.append(
            f"note: nothing is marked as uncertain: no threshold can guarantee an error of at most {error:.1%}"
        )
    if (stored["unknown"] or {}).get("threshold") is None:
        lines.append(f"note: nothing is marked as {NONE}: calibration.json has no threshold for it")
    return lines


def _cells(row: PredictionRow) -> tuple[str, ...]:
    path = printable(row.path)
    (prediction, probability), (second, runner_up) = row.ranked(0), row.ranked(1)
    if row.error:
        return (path, "error", "", "", printable(row.error).removeprefix(f"{path}: "), "")
    calibrated = "" if row.calibrated is None else f"{row.calibrated:.1%}"
    runner = f"{printable(second)} {runner_up:.1%}"
    return (path, printable(prediction), f"{probability:.1%}", calibrated, runner, row.verdict)


def _counts(rows: Sequence[PredictionRow]) -> list[str]:
    """Return how many files are of each class, the most frequent ones first, of each verdict, and unreadable."""
    counts = Counter(row.ranked(0)[0] for row in rows if not row.error)
    cells = [(shortened(printable(name)), f"{count:,}") for name, count in counts.most_common(ROWS)]
    lines = _aligned([("class", "files"), *cells], right=(1,))
    if len(counts) > ROWS:
        lines.append(f"and {len(counts) - ROWS:,} other classes")
    verdicts = Counter(row.verdict for row in rows)
    lines += [f"{verdict}: {verdicts[verdict]:,} (counted above)" for verdict in (UNCERTAIN, NONE) if verdicts[verdict]]
    errors = [row.error for row in rows if row.error]
    if errors:
        lines.append(f"unreadable: {len(errors):,}, such as {printable(errors[0])}")
    return lines


def _aligned(cells: Sequence[tuple[str, ...]], right: Sequence[int]) -> list[str]:
    """Return rows of a table whose columns are aligned, those in ``right`` to the right."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            text.rjust(width) if column in right else text.ljust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]
