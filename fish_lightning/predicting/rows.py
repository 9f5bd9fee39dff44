"""The prediction for one file, and its row in a table: what a part, ``predictions.csv`` and the terminal share."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fish_lightning.evaluation.stored_calibration import apply_calibration
from fish_lightning.names import path_cell, text_cell

ROWS = 20  # files and classes in the terminal at most
MAX_PROBABILITIES = 100  # classes whose probabilities are kept
UNCERTAIN, NONE = "uncertain", "none of these"  # verdicts


@dataclass(frozen=True)
class PredictionRow:
    """The prediction for one file.

    Attributes:
        path: path as the user gave it, or as it was found.
        probabilities: probability of each class (of many classes, the ``MAX_PROBABILITIES`` most probable), 0 to 1,
            most probable first, before temperature scaling; empty if the file could not be read.
        calibrated: probability of the most probable class after temperature scaling; None without a temperature.
        uncertain: whether the highest probability is below the threshold; None without one.
        unknown: whether the image is of none of the classes; None without a threshold.
        error: why the file could not be read, or None.
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

    def values(self) -> tuple[Any, ...]:
        """Return the values of the columns ``COLUMNS``, None where there is none."""
        (first, probability), (second, runner_up) = self.ranked(0), self.ranked(1)
        return (
            *(self.path, first or None, probability, self.calibrated, second or None, runner_up),
            *(self.uncertain, self.unknown, self.probabilities, self.error),
        )


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
        paths: paths of the files.
        errors: why each file could not be read; ``""`` if it could.
        logits: (N, C) logits.
        features: (N, D) features.
        class_names: class names in label order.
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
        order = np.argsort(-probabilities, kind="stable")[:MAX_PROBABILITIES]
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
    path, *values = row.values()
    return path_cell(path), *map(_cell, values)


def _cell(value: Any) -> Any:
    if isinstance(value, str):
        return text_cell(value)
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False)
    return int(value) if isinstance(value, bool) else value


def row_of(cells: Mapping[str, Any], path: str) -> PredictionRow:
    """Return the row of ``path`` from its cells, by column.

    Raises:
        KeyError: a column is missing.
        ValueError: a value is not a number.
    """

    def known(column: str, convert: Callable[[Any], Any]) -> Any:
        return None if cells[column] in ("", None) else convert(cells[column])

    calibrated = known("calibrated_probability", float)
    uncertain, unknown = (known(column, lambda mark: bool(int(mark))) for column in ("uncertain", "unknown"))
    error = known("error", str)
    if error is not None and text_cell(path) != path:  # the error begins with the path
        error = error.removeprefix("'")
    return PredictionRow(path, cells["probabilities"], calibrated, uncertain, unknown, error)
