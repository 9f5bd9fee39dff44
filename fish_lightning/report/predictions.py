"""Predictions of single photographs: table, CSV, JSON and contact sheet."""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fish_lightning.data.catalog import Catalog
from fish_lightning.data.decoding import UnreadableImage, decode
from fish_lightning.files import whole_file
from fish_lightning.plotting import figures as plots


@dataclass(frozen=True)
class PredictionRow:
    """What a model says of one file.

    Attributes:
        file: as the user gave or found it.
        probabilities: of each kind, 0 to 1, most probable first; empty if the file could not be read.
        error: why it could not be read, or None.
    """

    file: str
    probabilities: dict[str, float]
    error: str | None = None

    def ranked(self, place: int) -> tuple[str, float | None]:
        """Kind and probability of that place, 0 for the most probable; ``("", None)`` if there is none."""
        ranking = list(self.probabilities.items())
        return ranking[place] if place < len(ranking) else ("", None)


def prediction_rows(
    catalog: Catalog, batches: Sequence[torch.Tensor], class_names: Sequence[str]
) -> list[PredictionRow]:
    """One row a file, in the order of the catalog.

    Args:
        catalog: the N input files.
        batches: (B, C) probabilities each, N rows in all; not-a-number where a file could not be read.
        class_names: in label order.
    """
    rows = []
    for path, probabilities in zip(catalog.paths, torch.cat(list(batches)).numpy(), strict=True):
        if np.isnan(probabilities).any():
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
    return f"{path}: could not be read when it was predicted, but can be now"


def write_predictions(folder: Path, rows: Sequence[PredictionRow], catalog: Catalog, pictures: int) -> None:
    """Write ``predictions.csv``, ``predictions.json`` and, for ``pictures`` > 0, ``contact_sheet.png``."""
    with (
        whole_file(folder / "predictions.csv") as temporary,
        temporary.open("w", newline="", encoding="utf-8") as stream,
    ):
        lines = csv.writer(stream)
        lines.writerow(("file", "kind", "probability", "runner_up", "runner_up_probability", "error"))
        for row in rows:
            lines.writerow((row.file, *row.ranked(0), *row.ranked(1), row.error))
    with whole_file(folder / "predictions.json") as temporary:
        content = [
            {
                "file": row.file,
                "kind": row.ranked(0)[0] or None,
                "probability": row.ranked(0)[1],
                "probabilities": row.probabilities,
                "error": row.error,
            }
            for row in rows
        ]
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    shown = rows[:pictures]
    if shown:
        figure = plots.picture_figure(
            [plots.thumbnail(catalog.root / row.file) for row in shown],
            [
                f"{Path(row.file).name}\n"
                + ("unreadable" if row.error else f"{row.ranked(0)[0]} {row.ranked(0)[1]:.0%}")
                for row in shown
            ],
            [plots.BAD if row.error else plots.PLAIN for row in shown],
        )
        plots.save(figure, folder / "contact_sheet.png")


def prediction_table(rows: Sequence[PredictionRow]) -> str:
    """The predictions as a table for the screen."""
    cells = [("file", "kind", "probability", "runner-up")]
    for row in rows:
        if row.error:
            cells.append((row.file, "error", "", row.error))
        else:
            (kind, probability), (second, runner_up) = row.ranked(0), row.ranked(1)
            cells.append((row.file, kind, f"{probability:.1%}", f"{second} {runner_up:.1%}"))
    widths = [max(len(line[column]) for line in cells) for column in range(3)]
    return "\n".join(
        f"{file:<{widths[0]}}  {kind:<{widths[1]}}  {probability:>{widths[2]}}  {last}"
        for file, kind, probability, last in cells
    )
