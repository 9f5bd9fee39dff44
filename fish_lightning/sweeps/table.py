"""The table of a multirun: all its jobs, best first, on the screen, in ``sweep.csv`` and as ``sweep.png``.

A Hydra callback, and so imported at every start: nothing heavier than Hydra belongs here.
"""

import math
import statistics
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from fish_lightning.distributed.cluster import is_started_as_tasks
from fish_lightning.errors import UserError, end_with
from fish_lightning.files import csv_table, read_summary, shown
from fish_lightning.names import aligned
from fish_lightning.sweeps.study import minimized

METRICS = ("val/accuracy", "val/loss", "val/macro_f1", "test/accuracy", "test/loss", "test/macro_f1")
#: Settings that repeat a run: jobs that differ only in these have a mean and a standard deviation.
_REPETITIONS = ("seed", "split.fold", "data.leave_out")
#: Columns of a sweep whose jobs leave a class out: how well each score detects its images.
_UNKNOWN = ("auroc", "fpr95")
Row = dict[str, Any]


class SweepTable(Callback):
    """Writes ``sweep.csv`` and ``sweep.png`` to the multirun's folder after its last job."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Refuse a sweep of which torchrun or srun has started several copies."""
        if is_started_as_tasks():
            end_with(
                UserError(
                    "a sweep starts the processes of its jobs itself: run it once, without torchrun or srun,\n"
                    "with trainer=ddp trainer.devices=N, or on a cluster with hydra/launcher=submitit_slurm"
                )
            )

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Collect the jobs' ``summary.json``; exit with code 1 if a job has none."""
        folder, metric = Path(config.hydra.sweep.dir), str(config.optimized_metric)
        rows = sweep_rows(folder, metric)
        if not rows:
            return
        settings = _differing(rows)
        with csv_table(folder / "sweep.csv") as table:
            table.writerow([*rows[0], *settings])
            for i, row in enumerate([*rows, *repetition_rows(rows)]):
                own = [values[i] if i < len(rows) else "" for values in settings.values()]
                cells = row | {"overrides": " ".join(row["overrides"])}
                table.writerow([*(cells.get(column, "") for column in rows[0]), *own])
        written = "sweep.csv" + (", sweep.png" if _draw(folder, rows, metric) else "")
        print(f"\n{sweep_table(rows, metric)}\n\nsweep folder  {shown(folder)}  ({written})", flush=True)
        if suspects := _label_suspects(folder, rows):
            print(suspects, flush=True)
        print(f"tensorboard   tensorboard --logdir {quote(shown(folder))}", flush=True)
        storage = OmegaConf.select(config, "hydra.sweeper.storage")
        if storage is not None:
            lite = "sqlite:///" if str(storage).startswith("sqlite:///") else ""
            file = str(storage).removeprefix(lite)
            address = lite + (file if "://" in file else shown(file))
            print(f"study         optuna-dashboard {quote(address)}", flush=True)
        failed = sum(row["status"] == "failed" for row in rows)
        if failed:
            print(f"error: {failed} of {len(rows)} jobs failed; see above", file=sys.stderr, flush=True)
            sys.exit(1)


def sweep_rows(folder: Path, metric: str) -> list[Row]:
    """Return one row per job: job, overrides, metrics, best epoch, seconds, folder; best first, failed jobs last.

    Ties are broken by the lower validation loss. Where jobs leave a class out, columns ``auroc/<score>`` and
    ``fpr95/<score>`` follow.

    Args:
        folder: folder of the multirun; each job's folder contains ``.hydra`` and, unless it failed, ``summary.json``.
        metric: metric to sort by; lower is better for a loss, higher for other metrics.
    """
    rows, unknowns = [], []
    for overrides in sorted(folder.glob("*/.hydra/overrides.yaml")):
        job = overrides.parent.parent
        summary = job_summary(job)
        row: Row = {"job": job.name, "overrides": list(map(str, OmegaConf.load(overrides)))}
        for name in METRICS:
            stage, key = name.split("/")
            row[name] = summary.get(stage, {}).get(key)
        row |= {"best_epoch": summary.get("best_epoch"), "seconds": summary.get("seconds"), "folder": str(job)}
        row["test_images"] = summary.get("test", {}).get("n")
        row["status"] = ("pruned" if summary.get("pruned") else "done") if summary else "failed"
        rows.append(row)
        unknowns.append(((summary.get("test") or {}).get("unknowns") or {}).get("scores", {}))
    for score in dict.fromkeys(name for scores in unknowns for name in scores):
        for row, scores in zip(rows, unknowns, strict=True):
            row |= {f"{figure}/{score}": scores.get(score, {}).get(figure) for figure in _UNKNOWN}
    sign = 1 if minimized(metric) else -1

    def rank(row: Row) -> tuple[bool, float, float, int, str]:
        value, loss = (math.nan if row[name] is None else float(row[name]) for name in (metric, "val/loss"))
        first, second = (math.inf if math.isnan(x) else x for x in (sign * value, loss))
        job = row["job"]
        return math.isnan(value), first, second, int(job) if job.isdigit() else 0, job

    return sorted(rows, key=rank)


def job_summary(folder: Path) -> dict[str, Any]:
    """Return ``summary.json`` of a job; empty if it failed, also if an earlier attempt has written one."""
    return {} if (folder / "error.txt").is_file() else read_summary(folder)


def repetition_rows(rows: list[Row]) -> list[Row]:
    """Return mean and standard deviation of jobs that differ only in seed, fold or left-out class, and pooled folds.

    The standard deviation is that of a sample (n - 1). ``pooled`` is the accuracy over the test images of all folds;
    it differs from the mean if folds differ in size.
    """
    added = []
    for rest, group in _repetitions(rows):
        same: Row = dict.fromkeys(group[0]) | {"overrides": list(rest), "status": f"of {len(group)} jobs"}
        for job, function in (("mean", statistics.fmean), ("sd", statistics.stdev)):
            row = same | {"job": job}
            for name in (*METRICS, *_unknown_columns(group)):
                values = [other[name] for other in group]
                row[name] = None if None in values else function(values)
            added.append(row)
        if _are_folds(group):
            images = sum(row["test_images"] for row in group)
            added.append(same | {"job": "pooled", "test/accuracy": _right(group) / images, "test_images": images})
    return added


def _repetitions(rows: list[Row]) -> list[tuple[tuple[str, ...], list[Row]]]:
    """Return the groups of finished jobs that differ only in what repeats a run, each with its other overrides."""
    groups: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for row in rows:
        if row["status"] == "done":
            groups[tuple(word for word in row["overrides"] if not _ours(word, _REPETITIONS))].append(row)
    repeated = {rest: {tuple(map(_settings(row).get, _REPETITIONS)) for row in group} for rest, group in groups.items()}
    return [(rest, group) for rest, group in groups.items() if len(repeated[rest]) >= max(2, len(group))]


def _are_folds(group: list[Row]) -> bool:
    """Return whether each job tested another fold."""
    folds = [_settings(row).get("split.fold") for row in group]
    tested = all(row["test_images"] is not None for row in group)
    return tested and None not in folds and len(set(folds)) == len(folds)


def _right(folds: list[Row]) -> float:
    """Return the number of images that the jobs of all folds have classified correctly."""
    return float(sum(row["test/accuracy"] * row["test_images"] for row in folds))


def _label_suspects(folder: Path, rows: list[Row]) -> str | None:
    """Write the label suspects of the folds, of the best setting if there are several; return a message about them."""
    repeated = [group for _, group in _repetitions(rows) if _are_folds(group)]
    groups = [group for group in repeated if "data.leave_out" not in _settings(group[0])]
    if not groups:
        return None
    from fish_lightning.sweeps.label_suspects import write_label_suspects

    try:
        return write_label_suspects(folder, [Path(row["folder"]) for row in max(groups, key=_right)])
    except UserError as error:
        return f"label suspects  not computed: {error}"


def _unknown_columns(rows: list[Row], figures: Sequence[str] = _UNKNOWN) -> list[str]:
    return [name for name in rows[0] if name.partition("/")[0] in figures]


def sweep_table(rows: list[Row], metric: str) -> str:
    """Return the rows as text; overrides that all jobs share are in the first line."""
    repeated = repetition_rows(rows)
    common = [w for w in rows[0]["overrides"] if len(rows) > 1 and all(w in row["overrides"] for row in rows)]
    unknown = _unknown_columns(rows, ("auroc",))
    titles = [name.replace("auroc/", "AUROC ") for name in unknown]
    lines: list[tuple[str, ...]] = [("job", "val accuracy", "test accuracy", "val loss", *titles, "overrides")]
    for row in [*rows, *repeated]:
        values = [row[name] for name in ("val/accuracy", "test/accuracy", "val/loss", *unknown)]
        numbers = ["-" if value is None else f"{value:.4f}" for value in values]
        words = [_rounded(w) for w in row["overrides"] if w not in common and not _ours(w)]
        if row["status"] != "done":
            words.append(f" ({row['status']})")
        lines.append((row["job"], *numbers, " ".join(words)))
    shared = [word for word in common if not _ours(word)]
    head = f"sweep, best {metric} first" + (f"; all with {' '.join(shared)}" if shared else "")
    return "\n".join([head, *aligned(lines, right=range(4 + len(unknown)))])


def _differing(rows: list[Row]) -> dict[str, Sequence[str]]:
    """Return the settings that differ between jobs, each with its value in every job."""
    settings = list(map(_settings, rows))
    keys = dict.fromkeys(key for given in settings for key in given)
    return {k: [g.get(k, "") for g in settings] for k in keys if len({g.get(k) for g in settings}) > 1}


def _draw(folder: Path, rows: list[Row], metric: str) -> bool:
    """Draw ``sweep.png`` if there are jobs to compare; return whether it was drawn."""
    done = [row for row in rows if row[metric] is not None and not math.isnan(row[metric])]
    columns = _differing(done)
    if not columns:
        return False
    from fish_lightning.plotting.figures import save
    from fish_lightning.plotting.parallel_coordinates import sweep_figure

    pruned = [row["status"] == "pruned" for row in done]
    save(sweep_figure(columns, [float(row[metric]) for row in done], metric, pruned), folder / "sweep.png")
    return True


def _rounded(word: str) -> str:
    """Return an override with a long number rounded to four digits; ``sweep.csv`` contains all."""
    key, equals, value = word.partition("=")
    try:
        return word if len(value) < 12 else f"{key}{equals}{float(value):.4g}"
    except ValueError:
        return word


def _ours(word: str, others: Sequence[str] = ()) -> bool:
    """Return whether the Optuna sweeper adds this override to each trial, or it sets one of ``others``."""
    return word == "ckpt=auto" or word.partition("=")[0] in ("callbacks.pruning.trial", *others)


def _settings(row: Row) -> dict[str, str]:
    """Return the overrides of a job by key, without those that the Optuna sweeper adds."""
    return dict(word.split("=", 1) for word in row["overrides"] if "=" in word and not _ours(word))
