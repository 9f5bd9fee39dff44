"""Matplotlib figures of a run, for ``plots/*.png`` and TensorBoard."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fish_lightning.evaluation.outputs import Outputs
from fish_lightning.evaluation.scores import most_confused
from fish_lightning.files import atomic_write
from fish_lightning.names import figure_text, shortened
from fish_lightning.plotting.thumbnails import thumbnail

Pixels = npt.NDArray[np.uint8]
Row = dict[str, float | None]  # an epoch of the history

GOOD, BAD, PLAIN = "#1a7f37", "#c5221f", "#222222"  # titles: correct, wrong, unlabeled
UNCERTAIN, NONE = "#9a5b00", "#6a3fb5"  # titles of predictions: uncertain, of none of the classes
TRAIN, VAL = "#1f77b4", "#d95f02"
LOG_FROM = 10.0  # losses above this use a log scale: an early spike would flatten the rest of the curve
CLASSES = 30  # of a confusion matrix: more are not legible, and cost memory with their square


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, atomically."""
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=110)


def history_figure(rows: Sequence[Row], what: str) -> Figure:
    """Plot ``loss`` or ``accuracy`` per epoch, for training (on augmented images) and validation.

    Epoch 0 is the validation before training.
    """
    columns = {f"train_{what}": TRAIN, f"val_{what}": VAL}
    figure = Figure(figsize=(7, 4.2))
    axes = figure.add_axes((0.1, 0.13, 0.88, 0.84))
    for column, color in columns.items():
        points = [(row["epoch"], row[column]) for row in rows if row.get(column) is not None]
        if points:
            label = column.partition("_")[0]
            axes.plot(*zip(*points, strict=True), "o-", color=color, label=label, markersize=4)
    axes.set(xlabel="epoch (0: before training)", ylabel=what)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if what == "accuracy":
        axes.set_ylim(0, 1.02)
    elif any((row.get(column) or 0) > LOG_FROM for row in rows for column in columns):
        axes.set_yscale("log")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def learning_rate_figure(
    rates: npt.ArrayLike, losses: npt.ArrayLike, smoothed: npt.ArrayLike, marks: dict[str, float]
) -> Figure:
    """Plot the losses of a learning-rate range test.

    Args:
        rates: learning rate of each step.
        losses: loss of each step.
        smoothed: smoothed loss of each step.
        marks: learning rates to mark, by name.
    """
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.plot(rates, losses, ".", color=PLAIN, alpha=0.35, label="loss of a step")
    axes.plot(rates, smoothed, color=TRAIN, label="smoothed")
    for (label, rate), color in zip(marks.items(), (GOOD, VAL), strict=False):
        axes.axvline(rate, color=color, linestyle="--", label=f"{label}: {rate:g}")
    axes.set(xlabel="learning rate", ylabel="training loss", xscale="log", ylim=(0, 1.5 * np.max(smoothed)))
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def batch_size_figure(sizes: Sequence[int], speeds: Sequence[float], memory: Sequence[int]) -> Figure:
    """Plot throughput and memory by batch size.

    Args:
        sizes: batch sizes in images.
        speeds: throughput of each batch size, in images per second.
        memory: memory of each batch size, in bytes.
    """
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    above, below = figure.subplots(2, sharex=True)
    above.plot(sizes, speeds, "o-", color=TRAIN)
    above.set(ylabel="images/s", ylim=(0, None))
    below.plot(sizes, [size / 1e9 for size in memory], "o-", color=VAL)
    below.set(xlabel="batch size", ylabel="peak memory, GB", ylim=(0, None))
    below.set_xscale("log", base=2)
    below.set_xticks(sizes, [str(size) for size in sizes])
    for axes in (above, below):
        axes.grid(alpha=0.3)
    return figure


def confusion_figure(matrix: npt.ArrayLike, class_names: Sequence[str]) -> Figure:
    """Plot a confusion matrix of counts, colored by the share of the true class.

    Its size is limited: of more than ``CLASSES`` classes, those with the most confusions are shown.

    Args:
        matrix: (C, C) counts; rows are true classes, columns predicted classes.
        class_names: class names in label order.
    """
    counts = np.asarray(matrix)
    shares, title = counts / np.maximum(counts.sum(1, keepdims=True), 1), ""
    if len(counts) > CLASSES:
        title = f"the {CLASSES} most confused of {len(counts)} classes; all: confusion_matrix.csv"
        most = most_confused(counts, CLASSES)
        class_names = [class_names[i] for i in most]
        counts, shares = counts[np.ix_(most, most)], shares[np.ix_(most, most)]
    names = [figure_text(shortened(name)) for name in class_names]
    size = 3.0 + 0.34 * len(names)
    figure = Figure(figsize=(size + 0.4, size), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    ticks = np.arange(len(names))
    axes.set_xticks(ticks, names, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(ticks, names)
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_title(title, fontsize=9)
    for true, predicted in zip(*np.nonzero(counts), strict=True):
        color = "white" if shares[true, predicted] > 0.5 else "black"
        axes.text(predicted, true, counts[true, predicted], ha="center", va="center", color=color)
    return figure


def prediction_figure(outputs: Outputs, root: Path, count: int) -> Figure:
    """Plot tested images with predicted and true classes, up to half of them wrong predictions.

    Args:
        outputs: outputs for all tested images.
        root: folder that their paths are relative to.
        count: maximum number of images.
    """
    order = np.random.default_rng([0, 3]).permutation(len(outputs))
    wrong, right = order[~outputs.correct[order]], order[outputs.correct[order]]
    shown_wrong = wrong[: max(count // 2, count - len(right))]
    return prediction_page(outputs, root, np.concatenate([shown_wrong, right[: count - len(shown_wrong)]]), 6)


def prediction_page(outputs: Outputs, root: Path, chosen: npt.NDArray[np.int64], columns: int = 3) -> Figure:
    """Plot some tested images with predicted and true classes.

    Args:
        outputs: outputs for all tested images.
        root: folder that their paths are relative to.
        chosen: (K,) indices of the images to plot.
        columns: number of images in a row.
    """
    pictures, titles, colors = [], [], []
    for i in chosen:
        true, pred = (outputs.classes[label] for label in (outputs.labels[i], outputs.preds[i]))
        pictures.append(thumbnail(root / str(outputs.paths[i])))
        title = f"{shortened(pred)} {outputs.confidence[i]:.0%}"
        titles.append(title + ("" if true == pred else f"\nis {shortened(true)}"))
        colors.append(GOOD if true == pred else BAD)
    return picture_figure(pictures, titles, colors, columns)


def picture_figure(
    pictures: Sequence[Pixels],
    titles: Sequence[str],
    colors: Sequence[str] | None = None,
    columns: int = 6,
    title: str = "",
) -> Figure:
    """Plot images in a grid, each with a title.

    Args:
        pictures: images of any size, (H, W, 3) each.
        titles: titles of the images, one or two short lines each.
        colors: colors of the titles; dark by default.
        columns: number of images in a row.
        title: title of the figure.
    """
    columns = min(columns, max(1, len(pictures)))
    lines = math.ceil(len(pictures) / columns)
    fontsize = 8 if columns > 3 else 11
    top = 0.4 if title else 0.1  # inches
    width, height = 2.3 * columns, 2.15 * lines + top
    figure = Figure(figsize=(width, height))
    if title:
        figure.suptitle(title, fontsize=11, y=1 - 0.1 / height, va="top")
    # One Axes in inches for all pictures: one each, and their layout, take five times as long to draw.
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    for i, picture in enumerate(pictures):
        line, column = divmod(i, columns)
        x, y = 2.3 * (column + 0.5), height - top - 2.15 * line
        text = figure_text(titles[i], lines=True)
        used = 0.05 + fontsize / 72 * 1.2 * (text.count("\n") + 1)  # by the title
        scale = min(2.2 / picture.shape[1], (2.1 - used) / picture.shape[0])
        half, high = scale * picture.shape[1] / 2, scale * picture.shape[0]
        axes.text(x, y - used, text, ha="center", va="bottom", fontsize=fontsize, color=colors[i] if colors else PLAIN)
        axes.imshow(picture, extent=(x - half, x + half, y - used - high - 0.03, y - used - 0.03), aspect="auto")
    axes.set(xlim=(0, width), ylim=(0, height))
    return figure
