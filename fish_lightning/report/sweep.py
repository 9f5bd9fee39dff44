"""After a multirun: all its jobs in one table, best first, on the screen and in ``sweep.csv``.

A Hydra callback, and so imported at every start: nothing heavy here.
"""

import csv
import json
import math
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from fish_lightning.files import shown, whole_file

METRICS = ("val/accuracy", "val/loss", "val/macro_f1", "test/accuracy", "test/loss", "test/macro_f1")


class SweepTable(Callback):
    """Writes ``sweep.csv`` into the multirun's folder when its last job is done."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Gather the jobs' ``summary.json``."""
        folder, metric = Path(config.hydra.sweep.dir), str(config.optimized_metric)
        rows = sweep_rows(folder, metric)
        if not rows:
            return
        columns = list(rows[0])
        with whole_file(folder / "sweep.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
            lines = csv.DictWriter(stream, columns)
            lines.writeheader()
            lines.writerows(rows)
        print(f"\n{sweep_table(rows, metric)}\n\nsweep folder  {shown(folder)}  (sweep.csv)", flush=True)
        print(f"tensorboard   tensorboard --logdir {shown(folder)}", flush=True)


def sweep_rows(folder: Path, metric: str) -> list[dict[str, Any]]:
    """One row a job: job, overrides, metrics, best epoch, seconds, folder; best first, failed jobs last.

    Args:
        folder: the multirun's folder; each job's sub-folder holds ``.hydra`` and, unless it failed, ``summary.json``.
        metric: what to sort by; lower is better for a loss, higher for all else.
    """
    rows = []
    for overrides in sorted(folder.glob("*/.hydra/overrides.yaml")):
        job = overrides.parent.parent
        file = job / "summary.json"
        summary = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        row: dict[str, Any] = {"job": job.name, "overrides": " ".join(map(str, OmegaConf.load(overrides)))}
        for name in METRICS:
            stage, key = name.split("/")
            row[name] = summary.get(stage, {}).get(key)
        row |= {"best_epoch": summary.get("best_epoch"), "seconds": summary.get("seconds"), "folder": str(job)}
        row["status"] = "done" if summary else "failed"
        rows.append(row)
    sign = 1 if metric.endswith("loss") else -1

    def rank(row: dict[str, Any]) -> tuple[bool, float, int, str]:
        value = float("nan") if row[metric] is None else float(row[metric])
        job = row["job"]
        return math.isnan(value), 0.0 if math.isnan(value) else sign * value, int(job) if job.isdigit() else 0, job

    return sorted(rows, key=rank)


def sweep_table(rows: list[dict[str, Any]], metric: str) -> str:
    """The rows as a table for the screen."""
    lines = [("job", "val accuracy", "test accuracy", "val loss", "overrides")]
    for row in rows:
        numbers = [_shown(row[name]) for name in ("val/accuracy", "test/accuracy", "val/loss")]
        lines.append((row["job"], *numbers, row["overrides"] + ("  (failed)" if row["status"] == "failed" else "")))
    widths = [max(len(line[i]) for line in lines) for i in range(4)]
    table = [
        "  ".join([*(cell.rjust(width) for cell, width in zip(line, widths, strict=False)), line[4]]) for line in lines
    ]
    return f"sweep, best {metric} first\n" + "\n".join(table)


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
