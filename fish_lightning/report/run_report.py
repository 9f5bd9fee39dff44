"""``report.html`` of a run or an evaluation: one file that says what a model has learnt and what its score is worth."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image
from tqdm import tqdm

from fish_lightning.evaluation.abstention import BOUND
from fish_lightning.evaluation.analysis import Analysis
from fish_lightning.evaluation.arrays import Floats, Ints, copies_before
from fish_lightning.evaluation.calibration import COLDEST, HOTTEST, ReliabilityCurve
from fish_lightning.evaluation.scores import most_confused
from fish_lightning.hardware import cores
from fish_lightning.plotting.thumbnails import data_uri, shrunk
from fish_lightning.report.charts import Chart
from fish_lightning.report.pages import write_page

Thumbnail: TypeAlias = Callable[[str], npt.NDArray[np.uint8]]
Row: TypeAlias = Mapping[str, float | None]

LARGE, MEDIUM, SMALL = 192, 96, 80  # pixels, longer side: of an error, in the gallery, of a neighbor
MATRIX = 30  # classes in the confusion matrix at most
CLASSES = 100  # rows in the table of classes at most
PHOTOGRAPHS, SUSPECTS = 12, 40  # with pictures, at most
SUBSETS = {"train": "training ", "val": "validation ", "test": "test ", "all": ""}  # before "images"
FEW = 10  # photographs of a class, or of a test, that say little


def write_report(
    file: Path,
    analysis: Analysis,
    texts: Mapping[str, Any],
    thumbnail: Thumbnail,
    training_thumbnail: Thumbnail | None = None,
    heat: Mapping[str, Floats] | None = None,
    pictures: int = 300,
) -> None:
    """Write the report as one self-contained HTML file that loads nothing.

    Args:
        file: file to write.
        analysis: analysis to report.
        texts: plain values to show, see :class:`~fish_lightning.evaluation.outputs.ReportInputs`.
        thumbnail: function that returns an (H, W, 3) uint8 thumbnail for a tested image's path, of about 200 pixels or
            more, even if the file is unreadable; called from threads.
        training_thumbnail: such a function for training images, if they are in another folder.
        heat: (h, w) heat maps of errors (``analysis.errors``) by path, 0 to 1; laid over the pictures.
        pictures: maximum number of pictures in the gallery; the page says how many there are.
    """
    gallery, shown = _sample(analysis, pictures), most_confused(analysis.confusion, MATRIX)
    errors, photographs = analysis.errors, analysis.worst_photographs[:PHOTOGRAPHS]
    suspects, paths = analysis.suspects[:SUSPECTS], analysis.images.paths
    source = _thumbnails(
        thumbnail,
        training_thumbnail if analysis.neighbors_from == "train" and training_thumbnail else thumbnail,
        [(str(paths[i]), MEDIUM, False) for i in gallery]
        + [(str(paths[error.image]), LARGE, False) for error in errors]
        + [(str(paths[photograph.image]), SMALL, False) for photograph in photographs]
        + [(suspect.paths[0], MEDIUM, False) for suspect in suspects]
        + [(near.path, SMALL, True) for error in errors for near in error.neighbors],
    )
    curves = (_curve(texts["history"], texts["best_epoch"], what) for what in ("loss", "accuracy"))
    # The lowest recall first, those without test images last.
    classes = [{"name": name} | score for name, score in zip(analysis.classes, analysis.per_class, strict=True)]
    classes.sort(key=lambda row: (row["recall"] is None, row["recall"] or 0, row["precision"] or 0))
    filters: dict[str, Callable[..., object]] = {
        "percent": "{:.1%}".format,
        "interval": lambda bounds: f"{bounds[0]:.1%} to {bounds[1]:.1%}",
        "sentence": lambda text: text[:1].upper() + text[1:] + ("" if text.endswith(".") else "."),
        "plural": _plural,
    }
    write_page(
        file,
        "report.html.j2",
        filters,
        **texts,
        a=analysis,
        verdict=verdict(analysis, texts["split"]),
        source=source,
        curves=[chart for chart in curves if chart],
        shown=shown,
        outside=int(analysis.confusion.sum() - analysis.confusion[np.ix_(shown, shown)].sum()),
        gallery=gallery,
        class_rows=classes[:CLASSES],
        heat={path: _overlay(cells) for path, cells in (heat or {}).items()},
        photographs=photographs,
        reliability=_reliability(analysis),
        risk=_risk(analysis),
        suspects=suspects,
        BOUND=BOUND,
        COLDEST=COLDEST,
        HOTTEST=HOTTEST,
        SUBSETS=SUBSETS | {"training": "training "},
        LARGE=LARGE,
        MEDIUM=MEDIUM,
        SMALL=SMALL,
    )


def verdict(analysis: Analysis, split: str | None = None) -> list[str]:
    """Return three sentences for readers who know no statistics: the score, what it is worth, what to do."""
    return [_score(analysis), _worth(analysis, split), _advice(analysis)]


def _score(analysis: Analysis) -> str:
    images, scores = analysis.images, analysis.scores
    n = f"{len(images):,} {SUBSETS[analysis.subset]}{_plural(len(images), 'image')}"
    low, high = scores["accuracy_ci95_photographs"] or scores["accuracy_ci95"]
    counted = (
        f"clustered by photograph, n={scores['photographs']:,}"
        if scores["photographs"] is not None
        else "if no image is a copy of another"
    )
    return (
        f"The model recognizes {scores['accuracy']:.1%} of {n}; on other images like these expect "
        f"{low:.1%} to {high:.1%} (95% CI, {counted})."
    )


def _worth(analysis: Analysis, split: str | None) -> str:
    n = len(analysis.images)
    chosen = f" (split={split})" if split else ""
    if analysis.subset in ("train", "all"):
        return "It was trained on these images or on some of them, so the score says little about unseen photographs."
    leaked, rest = analysis.scores["leaked_test_images"], analysis.scores["without_leaked"]
    if leaked is None:
        return (
            f"Whether it was trained on copies of these images{chosen} is unknown, so the score may be too high for "
            "unseen photographs (data.find_copies=true searches for copies)."
        )
    if leaked:
        clean = (
            f"on the other {rest['n']:,} the accuracy is {rest['accuracy']:.1%}" if rest["n"] else "there are no others"
        )
        return (
            f"{leaked:,} of the {n:,} have a copy among the training images{chosen}, so this score says "
            f"little about unseen photographs; {clean}."
        )
    if analysis.subset == "val":
        return (
            f"None of them has a copy among the training images{chosen}, but the checkpoint was chosen by its score on "
            "them, which makes it a little too high for unseen photographs."
        )
    return (
        f"None of them has a copy among the training images{chosen}, so the score holds for unseen photographs taken "
        "in the same way."
    )


def _advice(analysis: Analysis) -> str:
    tested = [label for label, score in enumerate(analysis.per_class) if score["n"]]
    worst = min(tested, key=lambda label: (analysis.per_class[label]["recall"], -analysis.per_class[label]["n"]))
    score, row = analysis.per_class[worst], analysis.confusion[worst].copy()
    if score["recall"] == 1:
        if (analysis.scores["photographs"] or len(analysis.images)) < FEW:
            return "There are no errors, but the test set is too small to conclude much: test it on more photographs."
        return "No class has an error: to find where the model fails, test it on more and harder photographs."
    right, row[worst] = int(row[worst]), 0
    name, other = analysis.classes[worst], analysis.classes[int(row.argmax())]
    suspects = sum(suspect.given == worst for suspect in analysis.suspects)
    if analysis.scores["leaked_test_images"]:
        action = "before anything else, train again with split=photograph, which keeps copies on one side"
    elif analysis.scores["photographs"] is not None and score["photographs"] < FEW:
        action = (
            f"only {score['photographs']} {_plural(score['photographs'], 'photograph')} of it "
            f"{'was' if score['photographs'] == 1 else 'were'} tested, so add photographs of it to training and test"
        )
    elif suspects:
        action = f"first check the {suspects} label {_plural(suspects, 'suspect')} of that class below"
    else:
        action = "look at these errors below, and add training photographs of both classes"
    return (
        f"The class with the lowest recall is {name}, {right:,} of {score['n']:,} recognized and {int(row.max()):,} "
        f"predicted as {other}: "
        f"{action}."
    )


def _sample(analysis: Analysis, most: int) -> Ints:
    """Choose images for the gallery: from all cells of the confusion matrix in turn, and from all photographs in turn.

    Errors come first.
    """
    images, classes = analysis.images, len(analysis.classes)
    shuffled = np.random.default_rng(0).permutation(len(images))
    names = images.photographs_or_paths[shuffled]
    cells = (images.labels * classes + images.preds)[shuffled]
    order = np.argsort(copies_before(names), kind="stable")
    turn = np.empty_like(order)
    turn[order] = copies_before(cells[order])
    first = np.lexsort((images.correct[shuffled], turn))[:most]
    return shuffled[first[np.argsort(images.correct[shuffled[first]], kind="stable")]]


def _thumbnails(tested: Thumbnail, training: Thumbnail, wanted: Iterable[tuple[str, int, bool]]) -> Callable[..., str]:
    """Make each picture once in each of its sizes; return what gives its data URI."""
    sizes: dict[tuple[str, bool], set[int]] = {}
    for path, size, from_training in wanted:
        sizes.setdefault((path, from_training), set()).add(size)

    def make(key: tuple[str, bool]) -> dict[int, str]:
        path, from_training = key
        picture = (training if from_training else tested)(path)
        return {size: data_uri(shrunk(picture, size), quality=70) for size in sizes[key]}

    with ThreadPoolExecutor(cores()) as pool:
        done = tqdm(pool.map(make, sizes), "report", len(sizes), unit="picture", disable=None)
        made = dict(zip(sizes, done, strict=True))
    return lambda path, size, from_training=False: made[path, from_training][size]


def _overlay(heat: Floats) -> str:
    """Return a heat map as a PNG of its own few pixels, which the browser enlarges: clear where it is cold."""
    warm = np.clip(heat.astype(np.float64), 0, 1)
    colors = np.zeros((*warm.shape, 4))
    colors[..., 0], colors[..., 1], colors[..., 3] = 255, 220 * (1 - warm), 190 * warm
    return data_uri(Image.fromarray(colors.round().astype(np.uint8)), "png")


def _curve(history: Sequence[Row], best_epoch: int | None, what: str) -> Chart | None:
    """Return the chart of ``loss`` or ``accuracy``; None where it was not measured."""
    percent = what == "accuracy"
    shown = ("{:.1%}" if percent else "{:.3f}").format
    epochs = [float(row["epoch"] or 0) for row in history]
    lines: dict[str, Floats] = {}
    for name, column in (("training", f"train_{what}"), ("validation", f"val_{what}")):
        values: Floats = np.array([row.get(column) for row in history], dtype=np.float64)
        if np.isfinite(values).any():
            lines[name] = np.where(np.isfinite(values), values, np.nan)
    if not lines:
        return None
    measured = {name: values[~np.isnan(values)] for name, values in lines.items()}
    said = "; ".join(f"{name} from {shown(v[0])} to {shown(v[-1])}" for name, v in measured.items())
    chart = Chart(
        what.capitalize(),
        f"{what.capitalize()} over {max(epochs):.0f} epochs: {said}.",
        (min(epochs), max(epochs)),
        (0, 1.0 if percent else 1.05 * _top(np.concatenate([*measured.values()]))),
        "epoch",
        (False, percent),
        whole=True,
    )
    for style, (name, values) in zip(("first", "second"), lines.items(), strict=False):
        notes = [f"epoch {epoch:.0f}, {name}: {shown(value)}" for epoch, value in zip(epochs, values, strict=True)]
        chart.line(name, epochs, values, style, notes)
    if best_epoch is not None and len(epochs) > 1:
        chart.mark(best_epoch, f"checkpoint: epoch {best_epoch}")
    return chart


def _top(losses: Floats) -> float:
    """Return the loss at the top of a chart; early spikes, which would flatten the rest, leave it."""
    return float(min(losses.max(), max(10 * np.median(losses), 2 * losses.min())))


def _reliability(analysis: Analysis) -> list[Chart]:
    """Return the reliability diagram before and, where there is a temperature, after scaling."""
    figures, after = analysis.calibration, analysis.calibration["after"]
    charts = [_reliability_chart("Before scaling", analysis.reliability, figures["ece"], "first")]
    if analysis.reliability_after is not None and after is not None:
        title = f"After scaling (temperature {figures['temperature']:.2f})"
        charts.append(_reliability_chart(title, analysis.reliability_after, after["ece"], "second"))
    return charts


def _reliability_chart(title: str, curve: ReliabilityCurve, ece: float, style: str) -> Chart:
    filled = curve.images > 0
    top = int(np.flatnonzero(filled)[-1])
    chart = Chart(
        title,
        f"Reliability diagram, ECE {ece:.1%}: where the model is {curve.confidence[top]:.0%} sure, "
        f"{curve.accuracy[top]:.0%} of {curve.images[top]:,} images are right.",
        (0, 1),
        (0, 1),
        "probability of the prediction; bars: number of images",
        (True, True),
    )
    for left, right, images in zip(curve.edges[:-1], curve.edges[1:], curve.images, strict=True):
        if images:
            chart.bar(float(left), float(right), 0.3 * float(images / curve.images.max()))
    chart.line("", (0, 1), (0, 1), "guide")
    low, high = curve.accuracy_ci95[filled].T
    chart.band(curve.confidence[filled], low, high, style)
    notes = [
        f"{curve.confidence[b]:.0%} sure: {curve.accuracy[b]:.0%} right (95% CI {curve.accuracy_ci95[b, 0]:.0%} to "
        f"{curve.accuracy_ci95[b, 1]:.0%}), {curve.images[b]:,} images"
        for b in np.flatnonzero(filled)
    ]
    chart.line("share of right answers", curve.confidence[filled], curve.accuracy[filled], style, notes)
    return chart


def _risk(analysis: Analysis) -> Chart:
    curve, selective = analysis.curve, analysis.selective
    target = selective["target_error"]
    highest = max(float(curve.risk.max()), target)
    chart = Chart(
        "Errors among answered images",
        f"Risk-coverage curve: {curve.risk[-1]:.1%} of the answers are wrong if every image is answered, and "
        f"{np.interp(0.5, curve.coverage, curve.risk):.1%} if the most confident half is.",
        (0, 1),
        (0, min(1.0, 1.25 * highest)),
        "share of images answered, the most confident first",
        (True, True),
    )
    chart.line("target", (0, 1), (target, target), "guide")
    chart.line("tested images", curve.coverage, curve.risk, "first")
    if selective["coverage"] is not None:
        chart.mark(selective["coverage"], "threshold")
    return chart


def _plural(number: int, word: str) -> str:
    return word if number == 1 else f"{word}s"
