"""Charts as inline SVG: coordinates are computed here, ``chart.html.j2`` draws them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from fish_lightning.evaluation.arrays import Floats

Values = Sequence[float] | Floats

LEFT, RIGHT, TOP, BOTTOM = 44.0, 340.0, 10.0, 200.0  # of the plot in a view box of 360 x 240
DOTTED = 40  # points of a line that are drawn as dots, with their values to point at, at most


@dataclass
class Chart:
    """Lines, bands and bars over a pair of linear axes.

    Attributes:
        title: title above the chart.
        alt: text alternative of the chart.
        x: lower and upper end of the x axis.
        y: lower and upper end of the y axis.
        x_label: label below the x axis.
        percent: whether x and y are shares.
        whole: whether x is a count, so that all its ticks are whole numbers.
    """

    title: str
    alt: str
    x: tuple[float, float]
    y: tuple[float, float]
    x_label: str
    percent: tuple[bool, bool] = (False, False)
    whole: bool = False
    lines: list[dict[str, object]] = field(default_factory=list)
    bands: list[dict[str, str]] = field(default_factory=list)
    bars: list[dict[str, object]] = field(default_factory=list)
    marks: list[dict[str, object]] = field(default_factory=list)

    @property
    def ticks(self) -> tuple[list[tuple[float, str]], list[tuple[float, str]]]:
        """Position and text of the ticks of x and of y."""
        return (
            [(self._x(value), _text(value, self.percent[0])) for value in ticks(*self.x, whole=self.whole)],
            [(self._y(value), _text(value, self.percent[1])) for value in ticks(*self.y)],
        )

    def line(self, name: str, xs: Values, ys: Values, style: str, notes: Sequence[str] | None = None) -> None:
        """Add a line.

        Args:
            name: name in the legend; ``""`` for none.
            xs: x coordinates of the points.
            ys: y coordinates of the points; NaN ones are left out.
            style: CSS class: ``first``, ``second`` or ``guide``.
            notes: text of each point, shown when it is pointed at; None: its coordinates.
        """
        if notes is None:
            notes = [f"{_text(x, self.percent[0])}: {_exact(y, self.percent[1])}" for x, y in zip(xs, ys, strict=True)]
        dots = [(self._x(x), self._y(y), note) for x, y, note in zip(xs, ys, notes, strict=True) if not math.isnan(y)]
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in dots)
        if style == "guide" or len(dots) > DOTTED:
            dots = []
        self.lines.append({"name": name, "style": style, "points": points, "dots": dots})

    def band(self, xs: Values, low: Values, high: Values, style: str) -> None:
        """Add an interval around a line; points with NaN bounds are left out."""
        known = [(x, a, b) for x, a, b in zip(xs, low, high, strict=True) if not math.isnan(a)]
        outline = [(x, b) for x, _, b in known] + [(x, a) for x, a, _ in reversed(known)]
        points = " ".join(f"{self._x(x):.1f},{self._y(y):.1f}" for x, y in outline)
        stems = " ".join(f"M{self._x(x):.1f},{self._y(a):.1f}V{self._y(b):.1f}" for x, a, b in known)
        self.bands.append({"style": style, "points": points, "stems": stems})

    def bar(self, left: float, right: float, height: float) -> None:
        """Add a bar that stands on the lower edge of the plot; ``height`` is a share of the plot's."""
        tall = height * (BOTTOM - TOP)
        self.bars.append({"x": self._x(left), "width": self._x(right) - self._x(left), "y": BOTTOM - tall, "h": tall})

    def mark(self, x: float, text: str) -> None:
        """Add a vertical line with a text, which stands on the side that has room for it."""
        place = self._x(x)
        self.marks.append({"x": place, "text": text, "anchor": "end" if place > (LEFT + RIGHT) / 2 else "start"})

    def _x(self, value: float) -> float:
        return _place(value, self.x, (LEFT, RIGHT))

    def _y(self, value: float) -> float:
        return _place(value, self.y, (BOTTOM, TOP))


def ticks(low: float, high: float, about: int = 6, whole: bool = False) -> list[float]:
    """Return about six round values, 1, 2 or 5 times a power of ten apart, from ``low`` to ``high``."""
    if not high > low:
        return [low]
    rough = (high - low) / (about - 1)
    power: float = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= 0.8 * rough)
    step = max(step, 1) if whole else step
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _place(value: float, axis: tuple[float, float], ends: tuple[float, float]) -> float:
    """Return where a value is between the ends of an axis, which it does not leave."""
    return float(np.interp(value, axis, ends)) if axis[1] > axis[0] else sum(ends) / 2


def _text(value: float, percent: bool) -> str:
    return f"{100 * value:.4g}%" if percent else f"{value:.4g}"


def _exact(value: float, percent: bool) -> str:
    return f"{value:.1%}" if percent else f"{value:.4f}"
