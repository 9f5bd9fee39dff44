"""Read what a run, or the folds of a sweep, was tested and trained on, and compare two of them image by image."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fish_lightning.data.catalog import COLUMNS
from fish_lightning.errors import UserError
from fish_lightning.evaluation.arrays import Bools, Names, require_finite
from fish_lightning.evaluation.comparison import common_images, compare, joined_photographs
from fish_lightning.evaluation.outputs import FILE, Outputs
from fish_lightning.evaluation.scores import vote_scores
from fish_lightning.files import read_rows, read_summary, shown
from fish_lightning.names import listed


@dataclass(frozen=True)
class TestedRun:
    """One training run or evaluation.

    Attributes:
        test: outputs on its N test images, without features.
        trained: paths of the training images; None where they are not recorded.
        photographs: photograph of each image of the run by path, where known.
        root: folder that paths are relative to; None where it is not recorded.
        overrides: command-line overrides it was started with.
    """

    test: Outputs
    trained: frozenset[str] | None
    photographs: Mapping[str, str]
    root: Path | None
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Run:
    """A training run, an evaluation, or the folds of a sweep.

    Attributes:
        folder: folder of the run.
        folds: the single run or evaluation, or the folds of the sweep.
        failed: names of the sweep's jobs without ``logits.npz``.
        test: outputs on the test images of all folds, one after the other.
        photographs: photograph of each image by path, where known.
        root: folder that paths are relative to; None where it is not recorded.
        overrides: command-line overrides that all folds were started with.
    """

    folder: Path
    folds: tuple[TestedRun, ...]
    failed: tuple[str, ...]
    test: Outputs
    photographs: Mapping[str, str]
    root: Path | None
    overrides: tuple[str, ...]

    def leaked(self, groupings: tuple[Mapping[str, str], ...]) -> Bools | None:
        """(N,) whether the fold that tested an image was trained on it or, in any of the groupings, on a copy of it.

        None where unknown.
        """
        masks = []
        for fold in self.folds:
            if fold.trained is None:
                return None
            mask, paths = np.zeros(len(fold.test), dtype=bool), fold.test.paths.tolist()
            for photographs in groupings:
                trained = {photographs.get(path, path) for path in fold.trained}
                mask |= np.array([photographs.get(path, path) in trained for path in paths], dtype=bool)
            masks.append(mask)
        return np.concatenate(masks)


@dataclass(frozen=True)
class Pair:
    """Two runs on the N test images they share.

    Attributes:
        a: outputs of A.
        b: outputs of B on the same images.
        photographs: (N,) each image's photograph; None where neither run knows them.
        leaked: (N,) whether A, and whether B, was trained on an image or on a copy of it; None where unknown.
        warnings: what limits the comparison, one sentence each.
    """

    a: Outputs
    b: Outputs
    photographs: Names | None
    leaked: tuple[Bools | None, Bools | None]
    warnings: tuple[str, ...] = ()


def load_run(key: str, path: str | Path) -> Run:
    """Read the folder of a training run, of an evaluation, or of a sweep of either.

    Args:
        key: the setting that names the folder, for errors.
        path: the folder.

    Raises:
        UserError: there is no such folder, no ``logits.npz`` in it or its sub-folders, a corrupt one, or no test
            images.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise UserError(
            f"{key}: {folder} {what} (working directory: {Path.cwd()})\npass the folder of a run or of a sweep"
        )
    jobs, failed = [folder], []
    if not (folder / FILE).is_file():
        done = {file.parent for file in folder.glob(f"*/{FILE}") if not (file.parent / "error.txt").is_file()}
        failed = sorted(job.parent.name for job in folder.glob("*/.hydra") if job.parent not in done)
        jobs = sorted(done) or jobs
    folds = tuple(_load_tested_run(job) for job in jobs)
    for fold in folds[1:]:
        _require_same_classes("the runs of one sweep", "the first", folds[0].test, "another", fold.test)
    test = Outputs.concatenated(fold.test for fold in folds)
    if not len(test):
        raise UserError(f"{key}: {shown(folder)} has no test images\ntrain with test=true, or evaluate subset=test")
    photographs = {path: name for fold in folds for path, name in fold.photographs.items()}
    shared = tuple(word for word in folds[0].overrides if all(word in fold.overrides for fold in folds))
    return Run(folder, folds, tuple(failed), test, photographs, folds[0].root, shared)


def match(a: Run, b: Run) -> Pair:
    """Match two runs image by image.

    Raises:
        UserError: their classes differ, they share no test image, an image has two labels, or logits are NaN.
    """
    _require_same_classes("A and B", "A", a.test, "B", b.test)
    in_a, in_b = common_images(a.test.paths.tolist(), b.test.paths.tolist())
    ours, theirs = a.test.take(in_a), b.test.take(in_b)
    differing = np.flatnonzero(ours.labels != theirs.labels)
    if len(differing):
        first = differing[0]
        names = [ours.classes[o.labels[first]] for o in (ours, theirs)]
        raise UserError(
            f"A and B have different labels for {len(differing):,} of the {len(ours):,} images they share\n"
            f"for example {ours.paths[first]}: {names[0]} in A, {names[1]} in B\n"
            "they are runs of different data; evaluate both on the same images"
        )
    for name, logits in (("A", ours.logits), ("B", theirs.logits)):
        require_finite(logits, f"logits in {name}")
    groupings = (a.photographs, b.photographs)
    leaked_a, leaked_b = (
        None if (mask := run.leaked(groupings)) is None else mask[at] for run, at in ((a, in_a), (b, in_b))
    )
    photographs, regrouped = None, False
    if ours.photographs_known or theirs.photographs_known:
        grouped = ours.photographs_or_paths, theirs.photographs_or_paths
        photographs = joined_photographs(*grouped).astype(np.str_)
        regrouped = len({len(np.unique(names)) for names in (photographs, *grouped)}) > 1
    pair = Pair(ours, theirs, photographs, (leaked_a, leaked_b))
    return replace(pair, warnings=tuple(_warnings(a, b, pair, regrouped)))


def compare_pair(pair: Pair, margin: float) -> dict[str, Any]:
    """Return ``compare.json``, without the folders.

    Keys beside those of :func:`fish_lightning.evaluation.comparison.compare`: ``photograph_vote`` (``a`` and ``b``, see
    :func:`fish_lightning.evaluation.scores.vote_scores`; None where photographs are not known);
    ``leaked_test_images`` (``a`` and ``b``, None where unknown); ``without_leaked`` (the comparison on the images that
    neither was trained on; only ``n`` where there are none; None where no image leaked); ``per_class`` (``n``, recall
    ``a`` and ``b``, ``only_a_right``, ``only_b_right``); ``warnings``.
    """
    a, b, photographs, warnings = pair.a, pair.b, pair.photographs, list(pair.warnings)
    clean = np.ones(len(a), dtype=bool)
    for mask in pair.leaked:
        clean &= True if mask is None else ~mask
    rest: dict[str, Any] | None = None
    if not clean.any():
        rest = {"n": 0}
        warnings.append("there are no images that neither was trained on")
    elif not clean.all():
        groups = None if photographs is None else photographs[clean]
        rest = compare(a.correct[clean], b.correct[clean], groups, margin)
        warnings.append(f"on the {rest['n']:,} images that neither was trained on: {rest['sentence']}")
    votes = photographs is not None and {
        name: vote_scores(outputs.probabilities, outputs.labels, photographs) for name, outputs in (("a", a), ("b", b))
    }
    of, right_a, right_b, only_a, only_b = (
        np.bincount(a.labels[mask], minlength=len(a.classes)).tolist()
        for mask in (np.ones(len(a), bool), a.correct, b.correct, a.correct & ~b.correct, b.correct & ~a.correct)
    )
    per_class = {
        name: {
            "n": n,
            "a": right_a[label] / n if n else None,
            "b": right_b[label] / n if n else None,
            "only_a_right": only_a[label],
            "only_b_right": only_b[label],
        }
        for label, (name, n) in enumerate(zip(a.classes.tolist(), of, strict=True))
    }
    return compare(a.correct, b.correct, photographs, margin) | {
        "photograph_vote": votes or None,
        "leaked_test_images": {
            name: None if mask is None else int(mask.sum()) for name, mask in zip("ab", pair.leaked, strict=True)
        },
        "without_leaked": rest,
        "per_class": per_class,
        "warnings": warnings,
    }


def _load_tested_run(folder: Path) -> TestedRun:
    summary, split = read_summary(folder), folder / "split.csv"
    started_in = Path(_setting(folder, "hydra", "hydra.runtime.cwd") or "")
    if not split.is_file() and summary.get("checkpoint"):  # an evaluation: the split is the evaluated run's
        ckpt = started_in / Path(summary["checkpoint"]).expanduser()
        split = (ckpt if ckpt.is_dir() else ckpt.parent.parent) / "split.csv"  # a run's folder, or an export's
    other_data = "left_out" in summary  # that evaluation has left training images out; the same paths are other images
    rows = read_rows(split, split.name, COLUMNS) if split.is_file() and not other_data else []
    root = summary.get("data") or _setting(folder, "config", "data.root")
    overrides = folder / ".hydra" / "overrides.yaml"
    return TestedRun(
        test=Outputs.load_tested(folder),
        trained=frozenset(row["path"] for row in rows if row["split"] == "train") if rows or other_data else None,
        photographs={row["path"]: row["photograph"] for row in rows if row["photograph"]},
        root=started_in / Path(root).expanduser() if root else None,
        overrides=tuple(map(str, OmegaConf.load(overrides))) if overrides.is_file() else (),
    )


def _setting(folder: Path, name: str, key: str) -> str | None:
    """Return a value of ``.hydra/<name>.yaml``; None where it is missing or cannot be resolved here."""
    file = folder / ".hydra" / f"{name}.yaml"
    try:
        return OmegaConf.select(OmegaConf.load(file), key) if file.is_file() else None
    except OmegaConfBaseException:
        return None


def _require_same_classes(who: str, name_a: str, a: Outputs, name_b: str, b: Outputs) -> None:
    if not np.array_equal(a.classes, b.classes):
        only_a, only_b = (sorted(set(x.classes) - set(y.classes)) for x, y in ((a, b), (b, a)))
        raise UserError(
            f"{who} have different classes\n"
            f"only in {name_a}: {listed(only_a) or 'none'}\nonly in {name_b}: {listed(only_b) or 'none'}"
        )


def _warnings(a: Run, b: Run, pair: Pair, regrouped: bool) -> Iterator[str]:
    n = len(pair.a)
    if {len(a.test), len(b.test)} != {n}:
        yield (
            f"A was tested on {len(a.test):,} images and B on {len(b.test):,}; "
            f"they are compared on the {n:,} that both were tested on"
        )
    for name, run in (("A", a), ("B", b)):
        if run.failed:
            jobs = len(run.folds) + len(run.failed)
            yield f"{len(run.failed)} of {jobs} jobs of {name} have no {FILE}: {', '.join(run.failed[:5])}"
    if a.root and b.root and a.root.resolve() != b.root.resolve():
        yield f"A and B were tested in different folders, images are matched by path: {a.root} and {b.root}"
    if pair.photographs is None:
        yield "photographs are not known: intervals count images as independent"
    elif regrouped:
        yield "A and B group images into photographs differently; copies in either of them count as one photograph"
    for name, leaked in zip("AB", pair.leaked, strict=True):
        if leaked is None:
            yield f"whether {name} was trained on these images is unknown: its split.csv is missing"
        elif leaked.any():
            yield (
                f"{name} was trained on {leaked.sum():,} of the {n:,} images or on copies of them; "
                "its accuracy says little about unseen photographs"
            )
