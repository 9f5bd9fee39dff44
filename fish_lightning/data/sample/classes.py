"""Appearance of the nine classes of the sample set: proportions, fins, colors and patterns.

The names are the archive's, in its spelling. Positions along the body (``u``) run from the nose (0) to the root of the
tail (1), across it (``w``) from the spine to the belly (positive) or to the back (negative). Colors are RGB, 0 to 1.
"""

from dataclasses import dataclass

Color = tuple[float, float, float]
Polyline = tuple[tuple[float, float], ...]

#: The archive spells two classes differently in its folder of originals.
ORIGINAL_FOLDERS = {"Gilt-Head Bream": "Gilt Head Bream", "Hourse Mackerel": "Horse Mackerel"}

#: Positions along the body at which the outlines of a :class:`FishClass` are given.
STATIONS = (0.0, 0.06, 0.15, 0.30, 0.50, 0.70, 0.88, 1.0)


@dataclass(frozen=True)
class FishClass:
    """Appearance of the fish of one class; lengths are in body lengths, strengths from 0 (absent) to 1.

    Attributes:
        upper: half-depth above the spine at each of ``STATIONS``.
        lower: half-depth below the spine at each of ``STATIONS``.
        back_fins: (u, height) corners of the fins on the back.
        belly_fins: (u, height) corners of the fins under the belly.
        tail: length, half-span, and fork (0: straight edge, 1: cut to the root, below 0: rounded).
        eye: u, w and radius.
        back: color of the back.
        flank: color of the sides.
        belly: color of the belly.
        fins: color of all fins.
        band: v (-1 back, 1 belly) at which the back's color starts and ends fading.
        scales: strength of the pattern of scales.
        stripes: number of stripes along the body.
        stripe: color of the stripes.
        spots: number of dark spots.
        blotches: strength of the irregular patches in the back's color.
        lateral: strength of the lateral line; above 0.5 it is bent and plated.
        gill_spot: radius of the dark spot behind the gill cover.
        brow: strength of the golden band in front of the eye.
        barbels: whether two threads hang from the chin.
        segments: number of segments of a shrimp's abdomen; above 0, legs and antennae are drawn too.
        length: smallest and largest body length in a photograph, in widths of the canvas.
        bend: smallest and largest curvature of the spine, radians per body length.
    """

    upper: tuple[float, ...]
    lower: tuple[float, ...]
    back_fins: Polyline
    belly_fins: Polyline
    tail: tuple[float, float, float]
    eye: tuple[float, float, float]
    back: Color
    flank: Color
    belly: Color
    fins: Color
    band: tuple[float, float] = (-0.8, 0.1)
    scales: float = 0.4
    stripes: int = 0
    stripe: Color = (0.0, 0.0, 0.0)
    spots: int = 0
    blotches: float = 0.0
    lateral: float = 0.0
    gill_spot: float = 0.0
    brow: float = 0.0
    barbels: bool = False
    segments: int = 0
    length: tuple[float, float] = (0.58, 0.74)
    bend: tuple[float, float] = (-0.3, 0.3)


CLASSES: dict[str, FishClass] = {
    "Black Sea Sprat": FishClass(
        upper=(0.012, 0.042, 0.060, 0.078, 0.080, 0.062, 0.036, 0.026),
        lower=(0.014, 0.042, 0.066, 0.098, 0.100, 0.068, 0.036, 0.026),
        back_fins=((0.45, 0), (0.49, 0.075), (0.58, 0.02), (0.60, 0)),
        belly_fins=((0.48, 0), (0.50, 0.05), (0.54, 0), (0.70, 0), (0.73, 0.035), (0.88, 0.015), (0.90, 0)),
        tail=(0.20, 0.125, 0.72), eye=(0.085, -0.012, 0.026),
        back=(0.10, 0.30, 0.36), flank=(0.90, 0.80, 0.56), belly=(0.94, 0.86, 0.66), fins=(0.78, 0.66, 0.42),
        band=(-0.35, -0.1), scales=0.35, length=(0.48, 0.62),
    ),
    "Gilt-Head Bream": FishClass(
        upper=(0.030, 0.120, 0.185, 0.215, 0.190, 0.125, 0.060, 0.045),
        lower=(0.025, 0.080, 0.130, 0.175, 0.180, 0.120, 0.060, 0.045),
        back_fins=((0.29, 0), (0.34, 0.07), (0.62, 0.055), (0.80, 0.045), (0.86, 0)),
        belly_fins=((0.33, 0), (0.36, 0.09), (0.43, 0), (0.62, 0), (0.66, 0.06), (0.82, 0.03), (0.85, 0)),
        tail=(0.23, 0.165, 0.52), eye=(0.135, -0.075, 0.028),
        back=(0.37, 0.36, 0.27), flank=(0.73, 0.70, 0.55), belly=(0.90, 0.88, 0.77), fins=(0.48, 0.46, 0.42),
        scales=0.5, gill_spot=0.055, brow=1.0, length=(0.60, 0.76),
    ),
    "Hourse Mackerel": FishClass(
        upper=(0.012, 0.052, 0.080, 0.105, 0.108, 0.074, 0.032, 0.016),
        lower=(0.014, 0.050, 0.080, 0.110, 0.112, 0.076, 0.032, 0.016),
        back_fins=((0.32, 0), (0.35, 0.1), (0.45, 0.01), (0.47, 0), (0.5, 0.07), (0.6, 0.03), (0.93, 0.02), (0.95, 0)),
        belly_fins=((0.30, 0), (0.33, 0.07), (0.38, 0), (0.55, 0), (0.58, 0.06), (0.66, 0.03), (0.93, 0.02), (0.95, 0)),
        tail=(0.21, 0.150, 0.75), eye=(0.105, -0.022, 0.036),
        back=(0.36, 0.38, 0.22), flank=(0.86, 0.70, 0.22), belly=(0.88, 0.82, 0.62), fins=(0.72, 0.62, 0.34),
        scales=0.15, lateral=1.0, gill_spot=0.015, length=(0.60, 0.76),
    ),
    "Red Mullet": FishClass(
        upper=(0.045, 0.110, 0.130, 0.132, 0.118, 0.085, 0.052, 0.038),
        lower=(0.030, 0.055, 0.072, 0.092, 0.098, 0.078, 0.050, 0.038),
        back_fins=((0.30, 0), (0.34, 0.11), (0.45, 0.02), (0.47, 0), (0.60, 0), (0.63, 0.07), (0.74, 0.02), (0.76, 0)),
        belly_fins=((0.28, 0), (0.33, 0.08), (0.38, 0), (0.62, 0), (0.65, 0.06), (0.73, 0.02), (0.75, 0)),
        tail=(0.22, 0.140, 0.55), eye=(0.120, -0.062, 0.027),
        back=(0.74, 0.13, 0.09), flank=(0.86, 0.46, 0.36), belly=(0.92, 0.74, 0.66), fins=(0.80, 0.38, 0.26),
        scales=0.5, blotches=1.0, barbels=True,
    ),
    "Red Sea Bream": FishClass(
        upper=(0.022, 0.100, 0.165, 0.222, 0.215, 0.150, 0.068, 0.046),
        lower=(0.022, 0.090, 0.150, 0.210, 0.208, 0.145, 0.066, 0.046),
        back_fins=((0.26, 0), (0.31, 0.085), (0.50, 0.085), (0.74, 0.065), (0.85, 0.05), (0.88, 0)),
        belly_fins=((0.33, 0), (0.37, 0.11), (0.44, 0), (0.60, 0), (0.64, 0.07), (0.82, 0.045), (0.86, 0)),
        tail=(0.24, 0.165, 0.42), eye=(0.125, -0.060, 0.038),
        back=(0.56, 0.24, 0.20), flank=(0.84, 0.48, 0.40), belly=(0.86, 0.76, 0.64), fins=(0.62, 0.42, 0.32),
        scales=0.35, stripes=11, stripe=(0.30, 0.10, 0.08), length=(0.60, 0.76),
    ),
    "Sea Bass": FishClass(
        upper=(0.010, 0.042, 0.074, 0.102, 0.106, 0.082, 0.055, 0.045),
        lower=(0.018, 0.050, 0.078, 0.110, 0.112, 0.085, 0.054, 0.045),
        back_fins=((0.33, 0), (0.39, 0.1), (0.52, 0.02), (0.54, 0), (0.59, 0), (0.62, 0.085), (0.76, 0.03), (0.78, 0)),
        belly_fins=((0.31, 0), (0.34, 0.08), (0.40, 0), (0.65, 0), (0.69, 0.075), (0.77, 0.02), (0.79, 0)),
        tail=(0.21, 0.135, 0.36), eye=(0.095, -0.020, 0.020),
        back=(0.18, 0.22, 0.28), flank=(0.62, 0.67, 0.71), belly=(0.93, 0.94, 0.94), fins=(0.40, 0.39, 0.36),
        band=(-0.95, 0.3), scales=0.45, lateral=0.4, length=(0.66, 0.80),
    ),
    "Shrimp": FishClass(
        upper=(0.030, 0.062, 0.086, 0.092, 0.085, 0.072, 0.052, 0.036),
        lower=(0.030, 0.056, 0.070, 0.070, 0.060, 0.052, 0.042, 0.034),
        back_fins=((-1.0, 0), (2.0, 0)),
        belly_fins=((-1.0, 0), (2.0, 0)),
        tail=(0.17, 0.105, -0.35), eye=(0.035, -0.030, 0.016),
        back=(0.80, 0.36, 0.12), flank=(0.92, 0.53, 0.20), belly=(0.88, 0.64, 0.40), fins=(0.80, 0.42, 0.18),
        scales=0.0, segments=6, bend=(0.3, 2.3), length=(0.58, 0.74),
    ),
    "Striped Red Mullet": FishClass(
        upper=(0.025, 0.072, 0.100, 0.118, 0.110, 0.082, 0.052, 0.040),
        lower=(0.025, 0.050, 0.070, 0.098, 0.104, 0.080, 0.050, 0.040),
        back_fins=((0.30, 0), (0.34, 0.10), (0.45, 0.02), (0.47, 0), (0.60, 0), (0.63, 0.07), (0.74, 0.02), (0.76, 0)),
        belly_fins=((0.28, 0), (0.33, 0.08), (0.38, 0), (0.62, 0), (0.65, 0.06), (0.73, 0.02), (0.75, 0)),
        tail=(0.21, 0.135, 0.52), eye=(0.120, -0.042, 0.023),
        back=(0.70, 0.40, 0.26), flank=(0.93, 0.75, 0.56), belly=(0.95, 0.86, 0.76), fins=(0.82, 0.58, 0.34),
        scales=0.45, stripes=4, stripe=(0.66, 0.14, 0.08), barbels=True, length=(0.60, 0.76),
    ),
    "Trout": FishClass(
        upper=(0.020, 0.066, 0.098, 0.130, 0.138, 0.108, 0.074, 0.064),
        lower=(0.026, 0.070, 0.098, 0.138, 0.150, 0.110, 0.074, 0.064),
        back_fins=((0.44, 0), (0.48, 0.085), (0.6, 0.04), (0.62, 0), (0.82, 0), (0.85, 0.045), (0.87, 0.03), (0.88, 0)),
        belly_fins=((0.50, 0), (0.54, 0.07), (0.59, 0), (0.70, 0), (0.73, 0.08), (0.81, 0.02), (0.83, 0)),
        tail=(0.19, 0.130, 0.12), eye=(0.100, -0.028, 0.019),
        back=(0.22, 0.26, 0.13), flank=(0.50, 0.53, 0.30), belly=(0.80, 0.80, 0.60), fins=(0.46, 0.42, 0.28),
        band=(-0.9, 0.2), scales=0.3, spots=100, length=(0.64, 0.80),
    ),
}  # fmt: skip
