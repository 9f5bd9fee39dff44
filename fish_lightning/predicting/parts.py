"""``predictions/``: the rows of a run in parts, each complete or absent, and a manifest of what they belong to.

Part *k* has the rows of files ``k * size`` to ``(k + 1) * size - 1``, in order. A run that was stopped leaves a part
with the first of them. So what is left to do is known from the files alone, to any number of processes.
"""

import csv
import hashlib
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import albumentations as A
from omegaconf import DictConfig

from fish_lightning.data.inputs import InputFiles
from fish_lightning.distributed.cluster import is_first_process
from fish_lightning.errors import UserError, first_line
from fish_lightning.files import locked, shown
from fish_lightning.models.trained import TrainedModel
from fish_lightning.names import ENCODE_ERRORS
from fish_lightning.predicting.rows import COLUMNS, PredictionRow, cells_of, row_of
from fish_lightning.predicting.store import Folder
from fish_lightning.run_log import say

MANIFEST = "manifest.json"
VERSION = 1
#: Parts of a run unless ``part_rows`` is given, and rows in the largest.
PARTS, LARGEST = 64, 1024
#: What decides about the rows.
SETTINGS = ("ckpt", "calibration.json", "tta", "trainer.precision", "format")
Shard = tuple[int, int]


@dataclass(frozen=True)
class Parts:
    """The parts of one run.

    Attributes:
        folder: ``predictions`` in the run's folder, or in the object store.
        files: all files of the run, including those of other shards.
        size: number of rows in each part but the last.
        format: file format, ``"csv"`` or ``"parquet"``.
    """

    folder: Folder
    files: InputFiles
    size: int
    format: str
    _full: set[int] = field(default_factory=set, init=False, repr=False, compare=False)  # a full part stays as it is

    def __len__(self) -> int:
        return math.ceil(len(self.files) / self.size)

    def of_shard(self, shard: Shard) -> range:
        """Return the parts of shard ``(i, n)``, 1 to ``n``."""
        return range(shard[0] - 1, len(self), shard[1])

    def indices(self, part: int) -> range:
        """Return the indices of a part's files."""
        return range(part * self.size, min((part + 1) * self.size, len(self.files)))

    def name(self, part: int) -> str:
        """Return the name of a part's file."""
        return f"part-{part:05}.{self.format}"

    def count(self, part: int) -> int:
        """Return the number of rows of a part that has a file."""
        if part in self._full:
            return len(self.indices(part))
        content = self.folder.read(self.name(part))
        with self._corrupt(part):
            if self.format == "parquet":
                rows = int(_pyarrow()[1].read_metadata(io.BytesIO(content)).num_rows)
            else:
                rows = sum(1 for _ in csv.reader(_text(content))) - 1
        if rows == len(self.indices(part)):
            self._full.add(part)
        return rows

    def is_complete(self) -> bool:
        """Return whether all parts of all shards are complete."""
        there = self.folder.names()
        return all(self.name(part) in there for part in range(len(self))) and not self.missing((1, 1))

    def missing(self, shard: Shard) -> list[range]:
        """Return the indices of the files of a shard that have no row yet, a range for each part."""
        there = self.folder.names()
        left = [
            self.indices(part)[self.count(part) if self.name(part) in there else 0 :] for part in self.of_shard(shard)
        ]
        return [indices for indices in left if indices]

    def batches(self, missing: Sequence[range], batch_size: int) -> list[range]:
        """Return the indices of batches, each of one part."""
        return [
            indices[start : start + batch_size] for indices in missing for start in range(0, len(indices), batch_size)
        ]

    def say_if_resumed(self, where: Folder, shard: Shard, missing: Sequence[range]) -> None:
        """Print how many files are done."""
        total = sum(len(self.indices(part)) for part in self.of_shard(shard))
        if done := total - sum(map(len, missing)):
            say(f"resuming {where}: {done:,} of {total:,} files are done")

    def rows(self, parts: Iterable[int]) -> Iterator[PredictionRow]:
        """Yield the rows of parts, one after the other; absent parts have none.

        Raises:
            UserError: a file is corrupt.
        """
        for part in parts:
            try:
                content = self.folder.read(self.name(part))
            except FileNotFoundError:
                continue
            with self._corrupt(part):
                lines = _read_parquet(content) if self.format == "parquet" else _read_csv(content)
                rows = [row_of(line, self.files[i]) for i, line in zip(self.indices(part), lines, strict=False)]
            yield from rows

    def write(self, part: int, rows: Sequence[PredictionRow]) -> None:
        """Write the first rows of a part, or all, atomically; fewer never replace more."""
        is_partial = len(rows) < len(self.indices(part)) and self.name(part) in self.folder.names()
        if is_partial and self.count(part) >= len(rows):  # another run has gone further
            return
        self.folder.write(self.name(part), _parquet(rows) if self.format == "parquet" else _csv(rows))

    def set_complete(self) -> None:
        """Note that all parts are complete: the next run with the same command is a new one."""
        _write_manifest(self.folder, json.loads(self.folder.read(MANIFEST)) | {"complete": True})

    @contextmanager
    def _corrupt(self, part: int) -> Iterator[None]:
        """Report the errors that a corrupt part raises."""
        try:
            yield
        except (ValueError, KeyError, TypeError, csv.Error) as error:  # pyarrow's are ValueErrors
            file = self.folder.below(self.name(part))
            raise UserError(f"{file} is corrupt ({first_line(error)})\nremove it, and resume") from None


def open_parts(
    folder: Folder, lock: Path, files: InputFiles, cfg: DictConfig, trained: TrainedModel, command: Sequence[str]
) -> Parts:
    """Begin the parts of a run, or open those of a run that is resumed.

    Args:
        folder: folder of the parts.
        lock: lock file for the processes of this run.
        files: input files of the run.
        cfg: the composed ``conf/predict.yaml``.
        trained: the model.
        command: command by which :func:`fish_lightning.predicting.folders.predict_folder` finds the run.

    Raises:
        UserError: the folder has predictions of other files, by another model or with other settings.
    """
    if cfg.format == "parquet":
        _pyarrow()
    model = [trained.weights, list(trained.module.class_names), A.to_dict(trained.transform)]
    precision = trained.precision if cfg.trainer.precision == "auto" else cfg.trainer.precision
    settings = (_digest(model), _digest(trained.calibration), cfg.tta, str(precision), cfg.format)
    # Several processes share also a few files; a batch never has files of two parts.
    size = cfg.part_rows or min(LARGEST, cfg.batch_size * math.ceil(len(files) / PARTS / cfg.batch_size))
    manifest = {
        "version": VERSION,
        "command": list(command),
        "files": len(files),
        "digest": files.digest(),
        "size": size,
        "settings": dict(zip(SETTINGS, settings, strict=True)),
        "complete": False,
    }
    with locked(lock):  # of several processes, one begins
        begun = _manifest(folder)
        if begun is None:
            _write_manifest(folder, manifest)
            begun = _manifest(folder) or manifest  # in a store, another machine may have begun too
    if differences := _differences(begun, manifest):
        raise UserError(
            f"{folder} has predictions {'; '.join(differences)}\n"
            f"start again in another folder ({folder.setting}), or remove this one"
        )
    return Parts(folder, files, int(begun["size"]), cfg.format)


def shard_of(text: str | None) -> Shard:
    """Return the shard that ``"3/64"`` names, the third of 64; None: the only one."""
    number, _, count = (text or "1/1").partition("/")
    return int(number), int(count)


def _digest(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, default=lambda part: part.tolist())  # training features are an array
    return hashlib.sha256(text.encode()).hexdigest()


def exclusive(folder: Path, shard: Shard) -> AbstractContextManager[None]:
    """Refuse to work on a shard that another program is working on; only the first process of a run holds the lock."""
    if not is_first_process():
        return nullcontext()
    error = UserError(
        f"another program is writing predictions to {shown(folder)}\n"
        "wait for it, or choose another folder: hydra.run.dir=FOLDER"
    )
    return locked(folder / f".shard-{shard[0]}-of-{shard[1]}.lock", busy=error)


def _manifest(folder: Folder) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads(folder.read(MANIFEST))
        if content["version"] != VERSION or content["size"] < 1 or content["settings"].keys() != {*SETTINGS}:
            raise ValueError("not of this version")
        return content
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder.below(MANIFEST)} is corrupt ({first_line(error)})\nremove {folder}") from None


def _write_manifest(folder: Folder, manifest: Mapping[str, Any]) -> None:
    folder.write(MANIFEST, (json.dumps(manifest, indent=2) + "\n").encode())


def _differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return what differs between two manifests, in a few words each."""
    found = []
    if then["files"] != now["files"]:
        found.append(f"for other files ({then['files']:,}, now {now['files']:,})")
    elif then["digest"] != now["digest"]:
        found.append("for other files (as many, but with different names)")
    pairs = {name: [str(manifest["settings"][name])[:12] for manifest in (then, now)] for name in SETTINGS}
    return found + [f"with another {name} ({was}, now {is_})" for name, (was, is_) in pairs.items() if was != is_]


def _text(content: bytes) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(content), newline="", encoding="utf-8", errors=ENCODE_ERRORS)


def _csv(rows: Iterable[PredictionRow]) -> bytes:
    stream = io.StringIO(newline="")
    table = csv.writer(stream)
    table.writerow(COLUMNS)
    table.writerows(map(cells_of, rows))
    return stream.getvalue().encode(errors=ENCODE_ERRORS)


def _read_csv(content: bytes) -> list[dict[str, Any]]:
    return [line | {"probabilities": json.loads(line["probabilities"])} for line in csv.DictReader(_text(content))]


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise UserError("format=parquet requires pyarrow: pip install 'fish_lightning[parquet]'") from None
    return pa, pq


def _read_parquet(content: bytes) -> list[dict[str, Any]]:
    table = _pyarrow()[1].read_table(io.BytesIO(content), use_threads=False)
    return [line | {"probabilities": dict(line["probabilities"])} for line in table.to_pylist()]


def _parquet(rows: Sequence[PredictionRow]) -> bytes:
    """Return rows as Parquet: numbers are doubles, marks booleans, what is not known null; names are text in UTF-8."""
    pa, pq = _pyarrow()
    real, text, mark = pa.float64(), pa.string(), pa.bool_()
    types = (text, text, real, real, text, real, mark, mark, pa.map_(text, real), text)
    schema = pa.schema(list(zip(COLUMNS, types, strict=True)))
    table = [dict(zip(COLUMNS, map(_in_utf8, row.values()), strict=True)) for row in rows]
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(table, schema), stream)
    return stream.getvalue()


def _in_utf8(value: Any) -> Any:
    """Return a value of a row with escapes for the bytes of names that are not UTF-8; a dict as pairs."""
    if isinstance(value, dict):
        return [(_in_utf8(name), p) for name, p in value.items()]
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
