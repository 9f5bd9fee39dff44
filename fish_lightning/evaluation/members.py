"""The members of an ensemble: which runs they are, and what averaging them gains on the same images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fish_lightning.errors import UserError
from fish_lightning.evaluation.arrays import Bools, Names
from fish_lightning.evaluation.comparison import compare
from fish_lightning.evaluation.outputs import FILE as OUTPUTS_FILE
from fish_lightning.evaluation.outputs import Outputs
from fish_lightning.evaluation.runs import load_run
from fish_lightning.evaluation.scores import accuracy_of, photograph_interval
from fish_lightning.files import read_summary, run_of, shown

BEST = Path("checkpoints", "best.ckpt")


@dataclass(frozen=True)
class Tested:
    """What a test of an ensemble has found.

    Attributes:
        subset: subset that was tested: test or val.
        outputs: the ensemble's outputs for the tested images and for those that it is calibrated on.
        scores: the ensemble's block of ``summary.json``.
        correct: (N,) whether a member is right about the tested images, for each member by name.
        forward: duration of the ensemble's forward pass, as a multiple of the mean duration of a member's.
    """

    subset: str
    outputs: Outputs
    scores: dict[str, Any]
    correct: dict[str, Bools]
    forward: float


def find_members(runs: str | Sequence[str]) -> dict[str, Path]:
    """Return the best checkpoints of runs, by run folder as messages show it.

    Args:
        runs: the folder of a sweep, whose failed jobs are left out, or several runs, each a folder or a checkpoint.

    Raises:
        UserError: a run is missing, or named twice.
    """
    named = [runs] if isinstance(runs, str) else list(runs)
    places = [Path(str(name)).expanduser() for name in named]
    if len(places) == 1 and not places[0].is_file() and not (places[0] / BEST).is_file():
        places = _jobs(places[0])
    files = [place if place.is_file() else place / BEST for place in places]
    if missing := [file for file in files if not file.is_file()]:
        raise _not_found(f"no file {missing[0]}")
    if len({file.resolve() for file in files}) < len(files):
        raise UserError("runs: a run is named more than once; it would count more than the others")
    return {shown(run_of(file)): file for file in files}


def _jobs(sweep: Path) -> list[Path]:
    """Return the folders of a sweep's jobs in their order.

    Raises:
        UserError: there are none with a checkpoint.
    """
    jobs = [file.parents[1] for file in sweep.glob(f"*/{BEST}") if not (file.parents[1] / "error.txt").is_file()]
    if not jobs:
        what = "has neither checkpoints/best.ckpt nor jobs with one" if sweep.is_dir() else "is not a folder"
        raise _not_found(f"{sweep} {what}")
    return sorted(jobs, key=lambda job: (int(job.name) if job.name.isdigit() else 0, job.name))


def _not_found(what: str) -> UserError:
    return UserError(
        f"runs: {what} (working directory: {Path.cwd()})\n"
        "pass the folder of a sweep, or several runs: 'runs=[RUN_A,RUN_B]'"
    )


def validated(file: Path) -> dict[str, Any]:
    """Return ``accuracy`` and ``loss`` of a run's validation, from its ``summary.json``; empty where it has none.

    ``compared_checkpoints``, how many epochs they were the best of, is there too.
    """
    summary = read_summary(run_of(file))
    if not summary.get("val"):
        return {}
    found = {key: float(summary["val"][key]) for key in ("accuracy", "loss")}
    return found | {"compared_checkpoints": int(summary.get("compared_checkpoints", 1))}


def best_by_validation(files: Mapping[str, Path]) -> str | None:
    """Return the member with the highest validation accuracy, ties broken by the loss; None where one has none."""
    found = {name: validated(file) for name, file in files.items()}
    if not all(found.values()):
        return None
    return max(found, key=lambda name: (found[name]["accuracy"], -found[name]["loss"]))


def gain_over(members: Sequence[Bools], ensemble: Bools, units: Names, margin: float) -> dict[str, Any]:
    """Compare an ensemble with the mean of some of its members on the same images.

    The interval is that of :func:`fish_lightning.evaluation.comparison.compare`: whole photographs are drawn, with the
    answers of all members and of the ensemble.

    Args:
        members: (N,) whether a member is right, for each of them.
        ensemble: (N,) whether the ensemble is right.
        units: (N,) each image's photograph; its path where photographs are not known.
        margin: difference in accuracy that does not matter.

    Returns:
        ``accuracy`` (``member``, ``ensemble``), ``difference`` (ensemble - member), its 95 % interval
        ``difference_ci95_photographs``, and ``verdict``: better, worse, equivalent or not decided.
    """
    count = len(members)
    found = compare(np.concatenate(members), np.tile(ensemble, count), np.tile(units, count), margin)
    kept = ("difference", "difference_ci95_photographs", "verdict")
    accuracy = {"member": found["accuracy"]["a"], "ensemble": found["accuracy"]["b"]}
    return {"accuracy": accuracy} | {key: found[key] for key in kept}


def pooled_members(files: Mapping[str, Path]) -> dict[str, Any] | None:
    """Return how the members do one by one on their own test images, pooled, as the row ``pooled`` of a sweep does.

    Args:
        files: checkpoints of the members; ``logits.npz`` is beside the folder ``checkpoints`` of each.

    Returns:
        ``accuracy``, ``accuracy_ci95``, ``n``, and ``accuracy_ci95_photographs`` (None where photographs are not
        known); None where a member has no outputs, or two have tested the same image.
    """
    folders = [run_of(file) for file in files.values()]
    if not all((folder / OUTPUTS_FILE).is_file() for folder in folders):
        return None
    tested = [load_run("runs", folder).test for folder in folders]
    pooled, known = Outputs.concatenated(tested), all(of.photographs_known for of in tested)
    if len(np.unique(pooled.paths)) < len(pooled):
        return None
    interval = list(photograph_interval(pooled.correct, pooled.photographs_or_paths)) if known else None
    return accuracy_of(pooled.correct) | {"accuracy_ci95_photographs": interval}
