"""Predictions of single images: table, CSV, JSON and contact sheet."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fish_lightning.evaluation.stored_calibration import apply_calibration
from fish_lightning.files import atomic_write, csv_table
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
    paths: Sequence[str],
    errors: Sequence[str],
    logits: npt.NDArray[Any],
    features: npt.NDArray[Any],
    class_names: Sequence[str],
    stored: Mapping[str, Any] | None = None,
) -> list[PredictionRow]:
    """Return one row for each of N files.

    Args:
        paths: of the files.
        errors: why each could not be read; ``""`` for one that could.
        logits: (N, C).
        features: (N, D).
        class_names: in label order.
        stored: content of the run's ``calibration.json``; None or empty: nothing is calibrated.
    """
    rows = []
    finite = np.isfinite(logits).all(axis=1)
    answers = apply_calibration(stored or {}, np.nan_to_num(logits), features)
    for i, (path, error) in enumerate(zip(paths, errors, strict=True)):
        if error or not finite[i]:
            rows.append(PredictionRow(path, {}, error=error or f"{path}: the model's logits are NaN or infinite"))
            continue
        probabilities = answers.probabilities[i]
        order = np.argsort(-probabilities, kind="stable")[:LISTED]
        row = PredictionRow(
            path,
            {class_names[c]: float(probabilities[c]) for c in order},
            calibrated=None if answers.calibrated is None else float(answers.calibrated[i, order[0]]),
            uncertain=None if answers.uncertain is None else bool(answers.uncertain[i]),
            unknown=None if answers.unknown is None else bool(answers.unknown[i]),
        )
        rows.append(row)
    return rows


#: Columns of a part. ``predictions.csv`` has them without the probabilities, which are in ``predictions.json``.
COLUMNS = (
    *("path", "prediction", "probability", "calibrated_probability", "runner_up", "runner_up_probability"),
    *("uncertain", "unknown", "probabilities", "error"),
)


def cells_of(row: PredictionRow) -> tuple[Any, ...]:
    """Return the cells of a row in a CSV table with the columns ``COLUMNS``; the probabilities are a JSON object."""
    first, second = [(text_cell(name), p) for name, p in (row.ranked(0), row.ranked(1))]
    marks = [None if mark is None else int(mark) for mark in (row.uncertain, row.unknown)]
    probabilities = json.dumps(row.probabilities, ensure_ascii=False)
    return (
        path_cell(row.path),
        *first,
        row.calibrated,
        *second,
        *marks,
        probabilities,
        row.error and text_cell(row.error),
    )


def row_of(cells: Mapping[str, Any], path: str) -> PredictionRow:
    """Return the row of ``path`` that cells, by column, were made from.

    Raises:
        KeyError: a column is missing.
        ValueError: a number is none.
    """
    calibrated, uncertain, unknown, error = (
        None if cells[name] in ("", None) else cells[name]
        for name in ("calibrated_probability", "uncertain", "unknown", "error")
    )
    if error is not None and text_cell(path) != path:  # the error begins with the path
        error = error.removeprefix("'")
    return PredictionRow(
        path,
        cells["probabilities"],
        calibrated=None if calibrated is None else float(calibrated),
        uncertain=None if uncertain is None else bool(int(uncertain)),
        unknown=None if unknown is None else bool(int(unknown)),
        error=error,
    )


class Tally:
    """Counts rows as they pass, and keeps the first of them.

    Args:
        keep: number of rows to keep.
    """

    def __init__(self, keep: int) -> None:
        self.keep = keep
        self.first: list[PredictionRow] = []
        self.n = self.unreadable = 0
        self.classes: Counter[str] = Counter()
        self.verdicts: Counter[str] = Counter()
        self._error = ""

    def counted(self, rows: Iterable[PredictionRow]) -> Iterator[PredictionRow]:
        """Yield the rows again."""
        for row in rows:
            self.n += 1
            if len(self.first) < self.keep:
                self.first.append(row)
            if row.error is not None:
                self.unreadable += 1
                self._error = self._error or row.error
            else:
                self.classes[row.ranked(0)[0]] += 1
                self.verdicts[row.verdict] += 1
            yield row

    def lines(self) -> list[str]:
        """Return how many files are of each class, the most frequent ones first, of each verdict, and unreadable.

        The numbers for each class include the images that are marked as uncertain or as none of the classes; each of
        those has one verdict, as in the table.
        """
        cells = [(shortened(printable(name)), f"{count:,}") for name, count in self.classes.most_common(ROWS)]
        lines = _aligned([("class", "files"), *cells], right=(1,))
        if len(self.classes) > ROWS:
            lines.append(f"and {len(self.classes) - ROWS:,} other classes")
        marks = [(verdict, self.verdicts[verdict]) for verdict in (UNCERTAIN, NONE)]
        lines += [f"{verdict}: {count:,} (counted above)" for verdict, count in marks if count]
        if self.unreadable:
            lines.append(f"unreadable: {self.unreadable:,}, such as {printable(self._error)}")
        return lines


def write_predictions(folder: Path, rows: Iterable[PredictionRow]) -> None:
    """Write ``predictions.csv`` and ``predictions.json``, whole or not at all; the rows are read once."""
    with (
        csv_table(folder / "predictions.csv") as table,
        atomic_write(folder / "predictions.json") as temporary,
        # Bytes that are not UTF-8 become JSON's own escapes, from which a reader in Python gets the name back.
        temporary.open("w", encoding="utf-8", errors="backslashreplace") as stream,
    ):
        listed = COLUMNS.index("probabilities")
        table.writerow(COLUMNS[:listed] + COLUMNS[listed + 1 :])
        before = "["
        for row in rows:
            cells = cells_of(row)
            table.writerow(cells[:listed] + cells[listed + 1 :])
            entry = {
                "path": row.path,
                "prediction": row.ranked(0)[0] or None,
                "probability": row.ranked(0)[1],
                "calibrated_probability": row.calibrated,
                "probabilities": row.probabilities,
                "uncertain": row.uncertain,
                "unknown": row.unknown,
                "error": row.error,
            }
            stream.write(f"{before}\n{json.dumps(entry, indent=2, ensure_ascii=False)}")
            before = ","
        stream.write("\n]\n")


def write_contact_sheet(folder: Path, rows: Sequence[PredictionRow], n: int) -> str:
    """Write ``contact_sheet.png`` of the first of ``n`` files.

    Returns:
        The name of the file, as printed.
    """
    part = f"{len(rows):,} of {n:,} files" if len(rows) < n else ""
    figure = figures.picture_figure(
        [thumbnail(row.path) for row in rows],
        [f"{shortened(Path(row.path).name)}\n{_caption(row)}" for row in rows],
        [figures.BAD if row.error else COLORS[row.verdict] for row in rows],
        title=part,
    )
    figures.save(figure, folder / "contact_sheet.png")
    return "contact_sheet.png" + (f": {part}" if part else "")


COLORS = {"": figures.PLAIN, UNCERTAIN: figures.UNCERTAIN, NONE: figures.NONE}


def _caption(row: PredictionRow) -> str:
    name, probability = row.ranked(0)
    if probability is None or row.verdict == NONE:
        return row.verdict or "unreadable"
    return f"{row.verdict}: " * bool(row.verdict) + f"{shortened(name)} {probability:.0%}"


def prediction_table(rows: Sequence[PredictionRow]) -> str:
    """Return predictions as a table for the terminal, without columns for which nothing is calibrated."""
    titles = ("path", "prediction", "probability", "calibrated", "runner-up", "verdict")
    read = [row for row in rows if not row.error]
    known = {
        "calibrated": any(row.calibrated is not None for row in read),
        "verdict": any(row.uncertain is not None or row.unknown is not None for row in read),
    }
    kept = [column for column, title in enumerate(titles) if known.get(title, True)]
    cells = [titles, *map(_cells, rows)]
    return "\n".join(
        _aligned([tuple(line[column] for column in kept) for line in cells], right=(2, 3) if 3 in kept else (2,))
    )


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
