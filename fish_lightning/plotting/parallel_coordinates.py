"""``sweep.png``: a parallel-coordinates plot of the jobs of a sweep.

Like Optuna's plot of that name, for any sweep; it does not import torch, as the jobs may have run elsewhere.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

LOG_FROM = 20.0  # ratio of the largest to the smallest number from which an axis is logarithmic
TICKS = 5


def sweep_figure(
    settings: dict[str, Sequence[str]], values: Sequence[float], metric: str, pruned: Sequence[bool]
) -> Figure:
    """Plot an axis per setting, the metric last, and a line per job, colored by the metric, the best one thick.

    Args:
        settings: the (N,) values of each setting that differs between jobs, best job first, as typed.
        values: (N,) values of the metric, best first.
        metric: name of the metric.
        pruned: (N,) whether the job was pruned; its line is dotted.
    """
    figure = Figure(figsize=(2.2 + 2.0 * len(settings), 4.6), layout="constrained")
    axes = figure.subplots()
    columns = {key: _heights(column) for key, column in settings.items()}
    columns[metric] = _heights([f"{value:.4g}" for value in values])
    heights = np.array([column for column, _ in columns.values()])  # (axes, jobs), 0 to 1
    colors = heights[-1] if not metric.endswith("loss") else 1 - heights[-1]
    for job in reversed(range(len(values))):  # the best on top
        width, style = 3 if job == 0 else 1.2, ":" if pruned[job] else "-"
        axes.plot(heights[:, job], color=colormaps["viridis"](colors[job]), lw=width, ls=style, alpha=0.85)
    for position, (_, ticks) in enumerate(columns.values()):
        axes.axvline(position, color="#888888", lw=0.8)
        for height, label in ticks:
            axes.annotate(
                label, (position, height), (4, 0), textcoords="offset points", va="center", fontsize=8,
                bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.8},
            )  # fmt: skip
    axes.set_xticks(range(len(columns)), list(columns))
    axes.set_yticks([])
    title = f"{len(values)} jobs (thick: best" + (f"; dotted: {sum(pruned)} pruned)" if any(pruned) else ")")
    axes.set(xlim=(-0.1, len(columns) - 0.5), ylim=(-0.05, 1.05), title=title)
    for side in axes.spines.values():
        side.set_visible(False)
    return figure


def _heights(column: Sequence[str]) -> tuple[npt.NDArray[np.float64], list[tuple[float, str]]]:
    """Return the position of each value on its axis, 0 to 1, and the ticks: numbers to scale, words evenly spaced."""
    try:
        numbers = np.array([float(value) for value in column])
    except ValueError:
        numbers = np.array([np.nan])
    if not np.isfinite(numbers).all():
        words = sorted(set(column))
        places = {word: place / max(1, len(words) - 1) for place, word in enumerate(words)}
        ticks = [(place, word or "not set") for word, place in places.items()]
        return np.array([places[word] for word in column]), ticks
    logarithmic = numbers.min() > 0 and numbers.max() / numbers.min() >= LOG_FROM
    scaled = np.log(numbers) if logarithmic else numbers
    low, span = scaled.min(), float(np.ptp(scaled)) or 1.0
    labels = np.unique(numbers)
    if len(labels) > TICKS:
        locator = LogLocator(subs=(1, 2, 5), numticks=TICKS) if logarithmic else MaxNLocator(TICKS)
        round_ones = np.asarray(locator.tick_values(numbers.min(), numbers.max()))
        labels = round_ones[(round_ones >= numbers.min()) & (round_ones <= numbers.max())]
    at = np.log(labels) if logarithmic else labels
    ticks = [(float((place - low) / span), f"{label:.3g}") for place, label in zip(at, labels, strict=True)]
    return (scaled - low) / span, ticks
