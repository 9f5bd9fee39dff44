"""Report a comparison of two runs: a table on the screen, ``compare.json`` and ``compare.html`` with pictures."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from fish_lightning.data.decoding import UnreadableImage, decode
from fish_lightning.evaluation.arrays import Bools, copies_before
from fish_lightning.evaluation.runs import Pair, Run
from fish_lightning.files import shown, write_json
from fish_lightning.plotting.thumbnails import data_uri, shrunk
from fish_lightning.report.pages import write_page

SHOWN = 24  # maximum number of images in a gallery
THUMBNAIL = 160  # pixels, longer side; some 6 KB each
CLASSES = 100  # rows in the table of classes at most

TITLES = {
    "better": "B is better than A",
    "worse": "B is worse than A",
    "equivalent": "A and B are equivalent",
    "not decided": "Not decided: A or B",
}

Result = dict[str, Any]


def write_comparison(folder: Path, a: Run, b: Run, pair: Pair, result: Result, root: str | Path | None = None) -> None:
    """Write ``compare.json`` and ``compare.html``, and print the comparison.

    Args:
        folder: folder to write to.
        a: the first run.
        b: the second run.
        pair: the two, image by image.
        result: result of :func:`fish_lightning.evaluation.runs.compare_pair`.
        root: folder that the images' paths are relative to; None: where the runs found them.
    """
    roots = [Path(root).expanduser()] if root is not None else [run.root for run in (a, b) if run.root]
    galleries = [
        _gallery("Only A is right", pair, pair.a.correct & ~pair.b.correct, roots),
        _gallery("Only B is right", pair, pair.b.correct & ~pair.a.correct, roots),
    ]
    unread = sum(picture["src"] is None for gallery in galleries for picture in gallery["pictures"])
    result = {**result, "folders": {"a": str(a.folder.resolve()), "b": str(b.folder.resolve())}}
    runs = [_about(*of) for of in (("A", a, b), ("B", b, a))]
    # Those first on which A and B disagree most.
    classes = sorted(result["per_class"].items(), key=lambda row: -row[1]["only_a_right"] - row[1]["only_b_right"])
    write_json(folder / "compare.json", result)
    write_page(
        folder / "compare.html",
        "compare.html.j2",
        title=TITLES[result["verdict"]],
        result=result,
        runs=runs,
        rows=_rows(result),
        class_rows=classes[:CLASSES],
        mcnemar=_mcnemar(result),
        interval=_interval(result),
        galleries=galleries,
        unread=unread,
    )
    pictures = f", without {unread} images that cannot be read (set data.root=DIR)" if unread else ""
    print(f"{comparison_table(runs, result)}\nreport   {shown(folder / 'compare.html')}{pictures}", flush=True)


def comparison_table(runs: Sequence[dict[str, Any]], result: Result) -> str:
    """Return the comparison as text.

    Args:
        runs: ``name``, ``folder``, ``folds`` and ``overrides`` of A and B.
        result: content of ``compare.json``.
    """
    lines = []
    for run in runs:
        pooled = f"  ({run['folds']} runs pooled)" if run["folds"] > 1 else ""
        lines.append("  ".join([run["name"], run["folder"] + pooled, *run["overrides"]]))
    photographs = "" if result["photographs"] is None else f" of {result['photographs']:,} photographs"
    rows = [(f"{result['n']:,} test images{photographs}", "A", "B"), *_rows(result)]
    width = max(len(what) for what, _, _ in rows)
    lines += ["", *(f"{what:<{width}}  {in_a:>8}  {in_b:>8}" for what, in_a, in_b in rows), _mcnemar(result), ""]
    lines += [f"warning: {warning}" for warning in result["warnings"]]
    return "\n".join([*lines, f"verdict  {result['sentence']}"])


def _about(name: str, run: Run, other: Run) -> dict[str, Any]:
    """Describe a run, with the overrides that the other does not have."""
    overrides = [word for word in run.overrides if word not in other.overrides]
    return {"name": name, "folder": shown(run.folder), "folds": len(run.folds), "overrides": overrides}


def _rows(result: Result) -> list[tuple[str, str, str]]:
    """Return what is measured of both: heading, A, B."""
    accuracy, votes, rest = result["accuracy"], result["photograph_vote"], result["without_leaked"]
    rows = [("accuracy", accuracy["a"], accuracy["b"])]
    if votes:
        rows.append(("accuracy by photograph (its copies vote)", votes["a"]["accuracy"], votes["b"]["accuracy"]))
    if rest and rest["n"]:
        name = f"accuracy on the {rest['n']:,} images that neither was trained on"
        rows.append((name, rest["accuracy"]["a"], rest["accuracy"]["b"]))
    counts = [("images that only this run gets right", "only_a_right", "only_b_right")]
    if result["photographs"] is not None:
        counts.append(
            ("photographs on which it gets more copies right", "photographs_better_in_a", "photographs_better_in_b")
        )
    return [(what, f"{in_a:.2%}", f"{in_b:.2%}") for what, in_a, in_b in rows] + [
        (what, f"{result[in_a]:,}", f"{result[in_b]:,}") for what, in_a, in_b in counts
    ]


def _mcnemar(result: Result) -> str:
    p, note = result["mcnemar_p"], result["mcnemar_note"]
    return f"McNemar's test is {note}" if p is None else f"McNemar's test: p = {p:.2g}, {note}"


def _interval(result: Result) -> dict[str, float]:
    """Return where the interval's drawing has its parts, in percent of its width; 50 is a difference of 0."""
    low, high = result["difference_ci95_photographs"]
    scale = 1.15 * max(abs(low), abs(high), result["margin"])
    places = {"low": low, "high": high, "difference": result["difference"], "margin": result["margin"]}
    return {name: round(50 + 50 * value / scale, 2) for name, value in places.items()}


def _gallery(heading: str, pair: Pair, chosen: Bools, roots: Sequence[Path]) -> dict[str, Any]:
    """Return pictures of the chosen images.

    One copy of each photograph comes first, starting with those on whose true class the two disagree most.
    """
    a, p_a, p_b = pair.a, pair.a.probabilities, pair.b.probabilities
    gap = np.abs(p_a - p_b)[np.arange(len(a)), a.labels]
    indices = np.flatnonzero(chosen)
    indices = indices[np.argsort(-gap[indices], kind="stable")]
    names = a.paths if pair.photographs is None else pair.photographs
    indices = indices[np.argsort(copies_before(names[indices]), kind="stable")][:SHOWN]
    pictures = [
        {
            "path": str(a.paths[i]),
            "label": str(a.classes[a.labels[i]]),
            "answers": [(run, str(a.classes[p[i].argmax()]), p[i].max()) for run, p in (("A", p_a), ("B", p_b))],
            "src": _first_readable([root / str(a.paths[i]) for root in roots]),
        }
        for i in indices
    ]
    return {"heading": heading, "total": int(chosen.sum()), "pictures": pictures}


def _first_readable(files: Sequence[Path]) -> str | None:
    """Return a thumbnail of the first of the files that can be read, as a data URI; None if none can."""
    for file in files:
        with suppress(UnreadableImage):
            return data_uri(shrunk(decode(file), THUMBNAIL))
    return None
