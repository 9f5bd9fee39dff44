"""Label suspects of a sweep over folds: each image was tested once, by a model that saw no copy of it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fish_lightning.evaluation.label_suspects import find_label_suspects
from fish_lightning.evaluation.outputs import Outputs
from fish_lightning.files import csv_table
from fish_lightning.names import path_cell, printable, shortened, text_cell

FILE = "label_suspects.csv"
COLUMNS = ("path", "label", "suggested", "given_probability", "suggested_probability", "photograph")
SHOWN = 5  # photographs on the screen


def write_label_suspects(folder: Path, jobs: Sequence[Path]) -> str:
    """Pool the test predictions of all folds, write ``label_suspects.csv``, and return a message about it.

    Rows are images, the photographs with the most certain errors first, their copies together.

    Args:
        folder: folder of the sweep.
        jobs: folders of the folds.

    Raises:
        UserError: a job has no ``logits.npz`` or a corrupt one, or its logits are NaN.
    """
    tested = Outputs.concatenated(map(Outputs.load_tested, jobs))
    known = tested.photographs_known
    suspects = find_label_suspects(tested.probabilities, tested.labels, tested.known_photographs, tested.paths)
    classes = tested.classes.tolist()
    with csv_table(folder / FILE) as rows:
        rows.writerow(COLUMNS)
        for suspect in suspects:
            labels = [text_cell(classes[label]) for label in (suspect.given, suspect.suggested)]
            probabilities = [f"{p:.6f}" for p in (suspect.given_probability, suspect.suggested_probability)]
            for path, photograph in zip(suspect.paths, tested.photographs[suspect.images].tolist(), strict=True):
                rows.writerow((path_cell(path), *labels, *probabilities, path_cell(photograph)))
    searched = len(np.unique(tested.photographs_or_paths))
    unit = "photographs" if known else "images"
    if not suspects:
        return f"label suspects  none among {searched:,} {unit}"
    images = f" ({sum(len(suspect.paths) for suspect in suspects):,} images)" if known else ""
    lines = [f"label suspects  {len(suspects):,} of {searched:,} {unit}{images}: {FILE}, the most certain first"]
    for suspect in suspects[:SHOWN]:
        given, suggested = (shortened(printable(classes[label])) for label in (suspect.given, suspect.suggested))
        lines.append(
            f"  {printable(suspect.paths[0])}: labeled {given} "
            f"({suspect.given_probability:.0%}), perhaps {suggested} ({suspect.suggested_probability:.0%})"
        )
    return "\n".join(lines)
