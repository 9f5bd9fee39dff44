"""Predictions of single images: table, CSV, JSON and contact sheet."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fish_lightning.errors import UserError
from fish_lightning.files import atomic_write, csv_table
from fish_lightning.models.trained import TrainedModel
from fish_lightning.names import aligned, printable, shortened
from fish_lightning.plotting import figures
from fish_lightning.plotting.thumbnails import thumbnail
from fish_lightning.predicting.parts import Parts, Shard
from fish_lightning.predicting.rows import COLUMNS, NONE, ROWS, UNCERTAIN, PredictionRow, cells_of
from fish_lightning.predicting.store import Folder, RemoteFolder

#: Files up to which the parts are also merged: 60 MB of JSON for nine classes.
MERGED = 100_000


class Tally:
    """Counts rows as they pass, and keeps the first of them.

    Args:
        keep: number of rows to keep.
    """

    def __init__(self, keep: int) -> None:
        self.keep, self.n, self.unreadable, self._error = keep, 0, 0, ""
        self.first: list[PredictionRow] = []
        self.classes, self.verdicts = Counter[str](), Counter[str]()

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
        lines = aligned([("class", "files"), *cells], right=(1,))
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
        aligned([tuple(line[column] for column in kept) for line in cells], right=(2, 3) if 3 in kept else (2,))
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


def write_results(
    parts: Parts,
    shard: Shard,
    folder: Path,
    where: Folder,
    pictures: int,
    trained: TrainedModel,
    is_shown: bool,
    speed: str,
) -> None:
    """Count the rows, merge the parts if there are not too many, and print where they are.

    Args:
        parts: parts of the run; those of ``shard`` are complete.
        shard: shard of this run.
        folder: folder of the run.
        where: folder that contains the parts, and to which merged files are copied.
        pictures: number of images on the contact sheet.
        trained: the model.
        is_shown: whether the first rows have been printed.
        speed: how many images were predicted in how many seconds, as printed.

    Raises:
        UserError: files are unreadable.
    """
    whole = parts.is_complete()
    merged = ["predictions.csv", "predictions.json"] if whole and len(parts.files) <= MERGED else []
    tally = Tally(keep=max(ROWS, pictures))
    rows = tally.counted(parts.rows(range(len(parts)) if whole else parts.of_shard(shard)))
    if merged:
        write_predictions(folder, rows)
    for _ in rows:  # counted
        pass
    written = merged or [f"predictions/part-*.{parts.format}"]
    if tally.n and not is_shown:
        print(prediction_table(tally.first[:ROWS]))
    if tally.n > ROWS:
        print(f"{ROWS} of {tally.n:,} files; all in {written[0]}", "", *tally.lines(), sep="\n")
    for line in [trained.note] if trained.note else missing_thresholds(trained.calibration):
        print(line)
    sheet = [write_contact_sheet(folder, tally.first[:pictures], tally.n)] if whole and pictures else []
    if whole:
        if isinstance(where, RemoteFolder):
            for name in [*merged, *(["contact_sheet.png"] if pictures else [])]:
                where.write(name, (folder / name).read_bytes())
        parts.set_complete()
    print(f"\nfolder  {where}  ({', '.join([*written, *sheet])})" + speed)
    if not whole:
        print(f"shard {shard[0]} of {shard[1]} is complete; other shards are not yet")
    if tally.unreadable:
        table = merged[0] if merged else ", ".join([*written, *sheet])
        raise UserError(f"{tally.unreadable} of {tally.n} files could not be read: see the error column of {table}")
