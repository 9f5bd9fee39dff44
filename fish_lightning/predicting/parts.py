"""``predictions/``: the rows of a run in parts, each whole or absent, and a manifest that says what they are of.

Part *k* has the rows of files ``k * size`` to ``(k + 1) * size - 1``, in order. A run that was stopped leaves a part
with the first of them. So what is left to do is known from the files alone, to any number of processes.
"""

import csv
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import albumentations as A
from omegaconf import DictConfig

from fish_lightning.data.inputs import InputFiles
from fish_lightning.distributed.cluster import is_first_process
from fish_lightning.errors import UserError, first_line
from fish_lightning.files import csv_table, locked, shown, whole_file
from fish_lightning.models.trained import TrainedModel
from fish_lightning.names import ENCODE_ERRORS
from fish_lightning.report.predictions import COLUMNS, PredictionRow, cells_of, row_of
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
        folder: ``predictions`` in the run's folder.
        files: all files of the run, also those of other shards.
        size: rows in each part but the last.
        format: ``"csv"`` or ``"parquet"``.
    """

    folder: Path
    files: InputFiles
    size: int
    format: str

    def __len__(self) -> int:
        return math.ceil(len(self.files) / self.size)

    def of_shard(self, shard: Shard) -> range:
        """Return the parts of shard ``(i, n)``, 1 to ``n``."""
        return range(shard[0] - 1, len(self), shard[1])

    def indices(self, part: int) -> range:
        """Return the indices of a part's files."""
        return range(part * self.size, min((part + 1) * self.size, len(self.files)))

    def file(self, part: int) -> Path:
        """Return the file of a part."""
        return self.folder / f"part-{part:05}.{self.format}"

    def count(self, part: int) -> int:
        """Return the number of rows of a part; 0 if it is absent."""
        file = self.file(part)
        if not file.is_file():
            return 0
        if self.format == "parquet":
            _, pq = _pyarrow()
            with _corrupt(file):
                return int(pq.read_metadata(file).num_rows)
        with file.open(newline="", encoding="utf-8", errors=ENCODE_ERRORS) as stream, _corrupt(file):
            return sum(1 for _ in csv.reader(stream)) - 1

    def is_complete(self) -> bool:
        """Return whether all parts are, of all shards."""
        return all(self.file(part).is_file() for part in range(len(self))) and not self.missing((1, 1))

    def missing(self, shard: Shard) -> list[range]:
        """Return the indices of the files of a shard that have no row yet, a range for each part."""
        left = [self.indices(part)[self.count(part) :] for part in self.of_shard(shard)]
        return [indices for indices in left if indices]

    def batches(self, missing: Sequence[range], batch_size: int) -> list[range]:
        """Return the indices of batches, each of one part."""
        return [
            indices[start : start + batch_size] for indices in missing for start in range(0, len(indices), batch_size)
        ]

    def say_if_resumed(self, shard: Shard, missing: Sequence[range]) -> None:
        """Print how many files are done."""
        total = sum(len(self.indices(part)) for part in self.of_shard(shard))
        if done := total - sum(map(len, missing)):
            say(f"resuming {shown(self.folder.parent)}: {done:,} of {total:,} files are done")

    def rows(self, parts: Iterable[int]) -> Iterator[PredictionRow]:
        """Yield the rows of parts, one after the other; none of one that is absent.

        Raises:
            UserError: a file is corrupt.
        """
        read = _read_parquet if self.format == "parquet" else _read_csv
        for part in parts:
            file = self.file(part)
            if file.is_file():
                with _corrupt(file):
                    lines = list(read(file))
                    rows = [row_of(line, self.files[i]) for i, line in zip(self.indices(part), lines, strict=False)]
                yield from rows

    def write(self, part: int, rows: Sequence[PredictionRow]) -> None:
        """Write the first rows of a part, or all, atomically."""
        if self.format == "parquet":
            _write_parquet(self.file(part), rows)
            return
        with csv_table(self.file(part)) as table:
            table.writerow(COLUMNS)
            table.writerows(map(cells_of, rows))

    def set_complete(self) -> None:
        """Note that all parts are complete: the next run with the same command is a new one."""
        manifest = json.loads((self.folder / MANIFEST).read_text(encoding="utf-8"))
        _write_manifest(self.folder, manifest | {"complete": True})


def open_parts(
    folder: Path, files: InputFiles, cfg: DictConfig, trained: TrainedModel, command: Sequence[str]
) -> Parts:
    """Begin the parts of a run, or open those of a run that is resumed.

    Args:
        folder: ``predictions`` in the run's folder.
        files: of the run.
        cfg: the composed ``conf/predict.yaml``.
        trained: the model.
        command: what :func:`fish_lightning.predicting.folders.predict_folder` finds the run by.

    Raises:
        UserError: the folder has predictions of other files, by another model or with other settings.
    """
    if cfg.format == "parquet":
        _pyarrow()
    model = [trained.weights, list(trained.module.class_names), A.to_dict(trained.transform)]
    precision = trained.precision if cfg.trainer.precision == "auto" else cfg.trainer.precision
    # Several processes share also a few files; a batch never has files of two parts.
    size = cfg.part_rows or min(LARGEST, cfg.batch_size * math.ceil(len(files) / PARTS / cfg.batch_size))
    manifest = {
        "version": VERSION,
        "command": list(command),
        "files": len(files),
        "digest": files.digest(),
        "size": size,
        "settings": dict(
            zip(
                SETTINGS,
                (_digest(model), _digest(trained.calibration), cfg.tta, str(precision), cfg.format),
                strict=True,
            )
        ),
        "complete": False,
    }
    with locked(folder / ".begin.lock"):  # of several processes, one begins
        begun = _manifest(folder)
        if begun is None:
            _write_manifest(folder, manifest)
            begun = manifest
    if differences := _differences(begun, manifest):
        raise UserError(
            f"{shown(folder)} has predictions {'; '.join(differences)}\n"
            "start again in another folder (hydra.run.dir=FOLDER), or remove this one"
        )
    return Parts(folder, files, int(begun["size"]), cfg.format)


def shard_of(text: str | None) -> Shard:
    """Return the shard that ``"3/64"`` names, the third of 64; None: the only one."""
    number, _, count = (text or "1/1").partition("/")
    return int(number), int(count)


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


@contextmanager
def _corrupt(file: Path) -> Iterator[None]:
    """Report what a damaged part raises."""
    try:
        yield
    except (ValueError, KeyError, TypeError, csv.Error) as error:  # pyarrow's are ValueErrors
        raise UserError(f"{shown(file)} is corrupt ({first_line(error)})\nremove it, and resume") from None


def busy(folder: Path, shard: Shard) -> AbstractContextManager[None]:
    """Refuse to work on a shard that another program is working on; only the first process of a run holds the lock."""
    if not is_first_process():
        return nullcontext()
    error = UserError(
        f"another program is writing predictions to {shown(folder)}\n"
        "wait for it, or choose another folder: hydra.run.dir=FOLDER"
    )
    return locked(folder / f".shard-{shard[0]}-of-{shard[1]}.lock", busy=error)


def _manifest(folder: Path) -> dict[str, Any] | None:
    file = folder / MANIFEST
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if content["version"] != VERSION or content["size"] < 1 or content["settings"].keys() != {*SETTINGS}:
            raise ValueError("not of this version")
        return content
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{shown(file)} is corrupt ({first_line(error)})\nremove {shown(folder)}") from None


def _write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    with whole_file(folder / MANIFEST) as temporary:
        temporary.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def _differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return what differs between two manifests, in a few words each."""
    found = []
    if then["files"] != now["files"]:
        found.append(f"of other files ({then['files']:,}, now {now['files']:,})")
    elif then["digest"] != now["digest"]:
        found.append("of other files (as many, with other names)")
    for name in SETTINGS:
        was, is_ = (str(manifest["settings"][name])[:12] for manifest in (then, now))
        if was != is_:
            found.append(f"with another {name} ({was}, now {is_})")
    return found


def _read_csv(file: Path) -> Iterator[dict[str, Any]]:
    with file.open(newline="", encoding="utf-8", errors=ENCODE_ERRORS) as stream:
        for line in csv.DictReader(stream):
            yield line | {"probabilities": json.loads(line["probabilities"])}


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise UserError("format=parquet requires pyarrow: pip install 'fish_lightning[parquet]'") from None
    return pa, pq


def _read_parquet(file: Path) -> Iterator[dict[str, Any]]:
    _, pq = _pyarrow()
    for line in pq.read_table(file, use_threads=False, memory_map=False).to_pylist():
        yield line | {"probabilities": dict(line["probabilities"])}


def _write_parquet(file: Path, rows: Sequence[PredictionRow]) -> None:
    """Write rows as Parquet: numbers are doubles, marks booleans, what is not known null; names are text in UTF-8."""
    pa, pq = _pyarrow()
    real, text, mark = pa.float64(), pa.string(), pa.bool_()
    types = (text, text, real, real, text, real, mark, mark, pa.map_(text, real), text)
    columns = [
        (
            _utf8(row.path),
            _utf8(row.ranked(0)[0]) or None,
            row.ranked(0)[1],
            row.calibrated,
            _utf8(row.ranked(1)[0]) or None,
            row.ranked(1)[1],
            row.uncertain,
            row.unknown,
            [(_utf8(name), p) for name, p in row.probabilities.items()],
            row.error and _utf8(row.error),
        )
        for row in rows
    ]
    names = dict(zip(COLUMNS, zip(*columns, strict=True), strict=True))
    schema = pa.schema(list(zip(COLUMNS, types, strict=True)))
    with whole_file(file) as temporary:
        pq.write_table(pa.table({name: list(values) for name, values in names.items()}, schema), temporary)


def _utf8(name: str) -> str:
    """Return a name whose bytes that are not UTF-8 are escapes."""
    return name.encode("utf-8", "backslashreplace").decode()
