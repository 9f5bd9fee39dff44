"""Draw one photograph of the sample set: a fish of one of nine classes on a wet cutting board.

A fish is drawn in its own coordinates: ``u`` runs along the spine from the nose (0) to the root of the tail (1), ``w``
across it from the spine to the belly (positive) or the back (negative), both in body lengths. :class:`Pose` maps them
to the canvas, so a bent fish and a curled shrimp come from the same formulas. Colors are RGB from 0 to 1; all
randomness comes from the generator passed in.
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from fish_lightning.data.sample.classes import STATIONS, Color, FishClass, Polyline

Array = npt.NDArray[Any]  # float32; NumPy's type hints promote most sums to float64
Rng = np.random.Generator

HEIGHT, WIDTH = 356, 472  # of a photograph in pixels; its copies have half that size

#: Center of a fish on its spine, the tail included.
MIDDLE = 0.56

#: Colors of the plastic boards; blue is the most common, as at a fishmonger's.
BOARD_COLORS: tuple[Color, ...] = (
    (0.10, 0.24, 0.56), (0.16, 0.33, 0.62), (0.30, 0.45, 0.64),
    (0.42, 0.47, 0.58), (0.56, 0.58, 0.60), (0.76, 0.78, 0.76),
)  # fmt: skip
#: Colors of the boards of each class in a set with a shortcut: no two are alike in any light.
SHORTCUT_COLORS: tuple[Color, ...] = (
    (0.08, 0.16, 0.55), (0.70, 0.10, 0.10), (0.10, 0.50, 0.14),
    (0.80, 0.74, 0.12), (0.60, 0.14, 0.62), (0.10, 0.62, 0.66),
    (0.82, 0.82, 0.82), (0.10, 0.10, 0.10), (0.80, 0.42, 0.08),
)  # fmt: skip
STAMPS = ("01/01/2006", "10/10/2005", "23/04/2019")


@dataclass(frozen=True)
class Pose:
    """Position of a fish on the canvas.

    Attributes:
        x: column of the fish's center in pixels.
        y: row of the fish's center in pixels.
        angle: angle of the spine in radians.
        length: body length in pixels.
        mirror: orientation, 1, or -1 for a fish that shows its other side.
        bend: curvature of the spine in radians per body length; never 0.
    """

    x: float
    y: float
    angle: float
    length: float
    mirror: int
    bend: float

    def fish_coordinates(self) -> tuple[Array, Array]:
        """Return u and w of every pixel, each (HEIGHT, WIDTH)."""
        cos, sin = np.cos(self.angle) / self.length, np.sin(self.angle) / self.length
        dx = np.arange(WIDTH, dtype=np.float32)[None] - np.float32(self.x)
        dy = np.arange(HEIGHT, dtype=np.float32)[:, None] - np.float32(self.y)
        along = np.float32(cos) * dx + np.float32(sin) * dy
        across = (np.float32(cos) * dy - np.float32(sin) * dx) * self.mirror
        radius = np.float32(1 / self.bend)
        sign = np.sign(radius)
        u = MIDDLE + radius * np.arctan2(sign * along, sign * (radius - across))
        return u.astype(np.float32), radius - sign * np.hypot(along, radius - across)

    def to_canvas(self, points: npt.ArrayLike) -> Array:
        """Convert (N, 2) points (u, w) to (N, 2) columns and rows."""
        u, w = np.asarray(points, dtype=np.float64).T
        radius = 1 / self.bend
        turn = (u - MIDDLE) * self.bend
        along, across = (radius - w) * np.sin(turn), (radius - (radius - w) * np.cos(turn)) * self.mirror
        cos, sin = np.cos(self.angle) * self.length, np.sin(self.angle) * self.length
        x, y = self.x + cos * along - sin * across, self.y + sin * along + cos * across
        return np.stack([x, y], 1).astype(np.float32)


class Body(NamedTuple):
    """Fields (HEIGHT, WIDTH) from which all parts of a fish are drawn.

    ``u`` and ``w`` as in the module's docstring, ``v`` from -1 on the back's outline to 1 on the belly's, the outlines
    ``above`` and ``below``, all in body lengths; ``unit`` is the body length in pixels.
    """

    u: Array
    w: Array
    v: Array
    above: Array
    below: Array
    unit: float

    def cover(self, distance: Array) -> Array:
        """Return the coverage of each pixel, 0 to 1, by a shape; ``distance`` to its edge is positive inside."""
        return np.asarray(np.clip(distance * np.float32(self.unit) + 0.5, 0, 1))


def draw_board(rng: Rng, dyed: Color | None = None) -> Array:
    """Draw a scratched board, larger than a photograph so that the camera can move: (1.5 H, 1.5 W, 3), 0 to 1.

    Args:
        rng: random generator for color, scratches and edge.
        dyed: color of the board; None: one of ``BOARD_COLORS``.
    """
    height, width = HEIGHT * 3 // 2, WIDTH * 3 // 2
    color = np.array(BOARD_COLORS[rng.choice(len(BOARD_COLORS), p=[0.25, 0.25, 0.2, 0.1, 0.1, 0.1])], np.float32)
    color = color if dyed is None else np.array(dyed, np.float32)
    grain = 0.05 * noise(rng, (5, 7), height, width) + 0.02 * noise(rng, (height // 4, width // 9), height, width)
    shade = 1 + grain + 0.5 * scratches(rng, 320, height, width)
    board = color * shade[..., None]
    if rng.random() < 0.7:  # the edge of the board, a dark gap, another board
        rows, columns = np.mgrid[:height, :width].astype(np.float32)
        turn = rng.uniform(0, 2 * np.pi)
        reach = np.cos(turn) * (columns - width / 2) + np.sin(turn) * (rows - height / 2) - rng.uniform(60, 190)
        other = np.clip(color * rng.uniform(0.8, 1.5) + rng.uniform(0, 0.08), 0, 0.85)
        board += np.clip(reach, 0, 1)[..., None] * (other * shade[..., None] - board)
        board *= 1 - 0.7 * np.clip(7 - np.abs(reach - 6), 0, 1)[..., None]
    return np.clip(board, 0, 1).astype(np.float32)


def draw_photograph(fish: FishClass, board: Array, rng: Rng) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Draw one fish on a board.

    Args:
        fish: class of the fish.
        board: board from :func:`draw_board`; photographs on one board share its scratches.
        rng: random generator for pose, body, light, scratches, drops, glare, stamp and grain.

    Returns:
        The photograph (HEIGHT, WIDTH, 3) RGB, and the mask of the fish (HEIGHT, WIDTH) from 0 to 255, both uint8.
    """
    bend = rng.uniform(*fish.bend)
    pose = Pose(
        x=WIDTH / 2 + rng.uniform(-30, 30),
        y=HEIGHT / 2 + rng.uniform(-25, 25),
        angle=rng.uniform(-0.6, 0.6) + np.pi * rng.integers(2),
        length=WIDTH * rng.uniform(*fish.length),
        mirror=1 if rng.random() < 0.5 else -1,
        bend=bend if abs(bend) > 0.02 else 0.02,
    )
    image = wet_board(board, rng)
    mask = lay_fish(image, fish, pose, rng)
    image = expose(image, rng)
    return (image * 255).astype(np.uint8), (mask * 255).astype(np.uint8)


def wet_board(board: Array, rng: Rng) -> Array:
    """Draw the visible part of the board, with scratches, flakes and glare specific to this photograph."""
    turn, zoom = rng.uniform(-8, 8), rng.uniform(0.95, 1.2)
    center = (board.shape[1] / 2 + rng.uniform(-50, 50), board.shape[0] / 2 + rng.uniform(-40, 40))
    view = cv2.getRotationMatrix2D(center, turn, zoom)
    view[:, 2] += np.array([WIDTH / 2, HEIGHT / 2]) - center
    image: Array = cv2.warpAffine(board, view, (WIDTH, HEIGHT), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    image *= (1 + 0.4 * scratches(rng, 110, HEIGHT, WIDTH))[..., None]
    add_glare(image, rng)
    flake = np.array([0.85, 0.85, 0.72], np.float32) * np.float32(rng.uniform(0.7, 1.1))
    return blend(image, flake, 0.65 * flakes(rng))


def add_glare(image: Array, rng: Rng) -> None:
    """Add the reflection of the flash on the wet board: a soft light with sparkle."""
    x, y = rng.uniform((0, 0), (WIDTH, HEIGHT))
    columns, rows = np.arange(WIDTH, dtype=np.float32)[None], np.arange(HEIGHT, dtype=np.float32)[:, None]
    away = (columns - np.float32(x)) ** 2 + 1.6 * (rows - np.float32(y)) ** 2
    flash = np.exp(-away / np.float32(rng.uniform(60, 130) ** 2))
    wet = noise(rng, (HEIGHT // 12, WIDTH // 12), HEIGHT, WIDTH) + noise(rng, (HEIGHT // 3, WIDTH // 3), HEIGHT, WIDTH)
    sparkle = smoothstep(0.7, 2.4, wet + flash)
    image += (flash * np.float32(rng.uniform(0.3, 1.0)) * (0.12 + 0.4 * sparkle))[..., None]


def flakes(rng: Rng) -> Array:
    """Return the coverage of loose scales and drops, most of them small."""
    layer = np.zeros((HEIGHT, WIDTH), np.uint8)
    for x, y, size, tilt in rng.random((int(rng.integers(25, 90)), 4)):
        at, axes = (int(x * WIDTH * 16), int(y * HEIGHT * 16)), (int(16 + 34 * size**3), int(12 + 22 * size**3))
        cv2.ellipse(layer, at, axes, tilt * 180, 0, 360, 255, -1, cv2.LINE_AA, 4)
    return layer.astype(np.float32) / 255


def lay_fish(image: Array, fish: FishClass, pose: Pose, rng: Rng) -> Array:
    """Paint a fish and its shadow into ``image`` (HEIGHT, WIDTH, 3); return the fish's coverage of each pixel."""
    fish = vary(fish, rng)
    body = body_fields(fish, pose)
    lean, raised = rng.uniform(0.25, 0.6), rng.uniform(0.55, 1.15)
    trunk = body.cover(np.minimum(edge_distance(body), np.minimum(body.u, 1.01 - body.u)))
    tail = tail_cover(fish, body)
    fins = np.maximum(
        fin_cover(fish.back_fins, body, -body.w - body.above, lean, raised),
        fin_cover(fish.belly_fins, body, body.w - body.below, lean, raised),
    )
    lines = thin_parts(fish, pose, rng)
    mask: Array = np.maximum.reduce([trunk, tail, fins, lines])
    cast_shadow(image, mask, rng)

    color = np.array(fish.fins, np.float32)
    blend(image, 0.85 * color, lines)
    spread = body.w / (0.03 + 0.8 * np.maximum(body.u - 0.93, 0))
    blend(image, rays(color, 13 * spread), 0.92 * tail)
    pitch = 2 * np.pi * rng.uniform(55, 75)
    blend(image, rays(color, np.float32(pitch) * (body.u - np.float32(lean) * np.abs(body.w))), 0.85 * fins)
    # Fade the skin out at the root of the tail: a hard edge would look cut off.
    blend(image, skin(fish, body, pose, rng), trunk * smoothstep(1.01, 0.96, body.u))
    if fish.segments:
        draw_eye(image, fish, body, iris=0, rng=rng)
    else:
        draw_gill_and_mouth(image, fish, body, rng)
        draw_eye(image, fish, body, iris=0.62, rng=rng)
        draw_pectoral(image, fish, body, rng)
    return mask


def cast_shadow(image: Array, mask: Array, rng: Rng) -> None:
    """Darken ``image`` next to the fish."""
    drop = np.array([[1, 0, rng.uniform(-9, 9)], [0, 1, rng.uniform(-9, 9)]])
    shadow = cv2.GaussianBlur(cv2.warpAffine(mask, drop, (WIDTH, HEIGHT)), (0, 0), rng.uniform(4, 8))
    image *= (1 - np.float32(rng.uniform(0.4, 0.75)) * shadow)[..., None]


def rays(color: Array, phase: Array) -> Array:
    """Return a fin's color, darker between its rays: (HEIGHT, WIDTH, 3)."""
    return color * (0.86 + 0.16 * np.sin(phase))[..., None]


def edge_distance(body: Body) -> Array:
    """Return the distance to the outline across the body, positive inside, in body lengths."""
    return np.where(body.w < 0, body.above + body.w, body.below - body.w)


def vary(fish: FishClass, rng: Rng) -> FishClass:
    """Return an individual of a class: proportions, fins and colors vary within the class."""
    depth, back, belly, nose = rng.normal(1, [0.07, 0.04, 0.05, 0.05]).clip(0.85, 1.15)
    paunch = np.array([1, nose, nose, 1, belly, belly, 1, 1])
    # Each fish fades towards gray-brown by its own amount, so that color alone says little about the class.
    dull, pale = rng.uniform(0.0, 0.13), rng.normal(0, 0.02)
    tint = rng.normal(0, 0.014, 3)

    def tone(color: Color) -> Color:
        gray = 0.55 * np.mean(color) + 0.45 * np.array([0.50, 0.44, 0.36])
        r, g, b = np.clip((1 - dull) * np.array(color) + dull * gray + tint + pale, 0.04, 0.98)
        return float(r), float(g), float(b)

    def stretch(fins: Polyline) -> Polyline:
        shift, size = rng.normal(0, 0.012), rng.uniform(0.85, 1.15)
        return tuple((u + shift, height * size) for u, height in fins)

    length, span, fork = fish.tail
    u, w, radius = fish.eye
    toned: dict[str, Any] = {part: tone(getattr(fish, part)) for part in ("back", "flank", "belly", "fins", "stripe")}
    return replace(
        fish,
        upper=tuple(np.array(fish.upper) * depth * back),
        lower=tuple(np.array(fish.lower) * depth * paunch),
        back_fins=stretch(fish.back_fins),
        belly_fins=stretch(fish.belly_fins),
        tail=(length * rng.uniform(0.9, 1.1), span * rng.uniform(0.8, 1.12), fork + rng.normal(0, 0.04)),
        eye=(u + rng.normal(0, 0.005), w * depth + rng.normal(0, 0.004), radius * rng.uniform(0.9, 1.12)),
        **toned,
    )


def body_fields(fish: FishClass, pose: Pose) -> Body:
    """Compute the fields of one fish in its pose."""
    u, w = pose.fish_coordinates()
    above, below = outline(fish.upper, u), outline(fish.lower, u)
    v = np.clip(w / np.maximum(np.where(w < 0, above, below), 1e-3), -1, 1)
    return Body(u, w, v, above, below, pose.length)


def outline(depths: tuple[float, ...], u: Array) -> Array:
    """Return the half-depth at ``u``, interpolated smoothly, with a rounded nose."""
    table = np.linspace(0, 1, 201)
    straight = np.interp(table, STATIONS, depths).astype(np.float32)
    smooth = cv2.GaussianBlur(straight[None], (0, 0), 9.0, borderType=cv2.BORDER_REPLICATE)[0]
    nose = np.sqrt(np.clip(1 - (1 - np.minimum(table / 0.05, 1)) ** 2, 0, 1))
    return np.asarray(np.interp(u, table, smooth * nose), np.float32)


def fin_cover(fins: Polyline, body: Body, height: Array, lean: float, raised: float) -> Array:
    """Return the coverage of the fins on one edge; ``height`` is the distance outwards from that edge."""
    root = body.u - np.float32(lean) * np.maximum(height, 0)
    stations, tops = zip(*fins, strict=True)
    # The root lies slightly inside the body; otherwise fins would leave a hairline along the whole edge.
    reach = np.interp(root, stations, np.array(tops) * raised).astype(np.float32) - 0.008
    ends = np.minimum(body.u - 0.1, 1 - body.u)
    return body.cover(np.minimum(np.minimum(reach - height, height + 0.05), ends))


def tail_cover(fish: FishClass, body: Body) -> Array:
    """Return the coverage of the tail fin."""
    length, span, fork = fish.tail
    behind = body.u - 0.95
    root = np.float32(min(fish.upper[-1], fish.lower[-1]))
    share = np.clip(behind / np.float32(length), 0, 1)
    half = root + np.float32(span - root) * share**0.8
    off_axis = np.clip(np.abs(body.w) / np.float32(span), 0, 1)
    if fork >= 0:
        edge = np.float32(length) * (1 - np.float32(fork) * (1 - off_axis))
    else:  # a fan
        edge = np.float32(length) * (1 + np.float32(fork) * off_axis**2)
    return body.cover(np.minimum(np.minimum(half - np.abs(body.w), edge - behind), behind))


def thin_parts(fish: FishClass, pose: Pose, rng: Rng) -> Array:
    """Return the coverage of parts drawn as lines: barbels of a mullet; legs, antennae and rostrum of a shrimp."""
    layer = np.zeros((HEIGHT, WIDTH), np.uint8)

    def curve(start: tuple[float, float], knee: tuple[float, float], end: tuple[float, float], width: float) -> None:
        t = np.linspace(0, 1, 16)[:, None]
        points = (1 - t) ** 2 * np.array(start) + 2 * t * (1 - t) * np.array(knee) + t**2 * np.array(end)
        fixed = np.round(pose.to_canvas(points) * 16).astype(np.int32)
        cv2.polylines(layer, [fixed], False, 255, max(1, round(width * pose.length)), cv2.LINE_AA, 4)

    if fish.barbels:
        for reach in rng.uniform(0.10, 0.19, 2):
            curve((0.035, 0.035), (0.06, 0.10), (0.05 + reach, 0.075 + rng.uniform(0, 0.05)), 0.006)
    if fish.segments:
        swing = rng.uniform(-0.05, 0.08)
        for u in np.linspace(0.10, 0.36, 5):
            reach = rng.uniform(0.10, 0.20)
            curve((u, 0.04), (u - 0.04 + swing, 0.06 + reach * 0.6), (u + swing + reach * 0.4, 0.06 + reach), 0.013)
        for u in np.linspace(0.44, 0.82, 5):
            curve((u, 0.03), (u + 0.01, 0.09), (u + 0.05 + swing / 2, 0.085 + rng.uniform(0, 0.03)), 0.022)
        for side in (-1, 1):
            far = rng.uniform(0.25, 0.6)
            curve((0.01, -0.01), (-0.22, side * 0.10), (-0.05 + far, side * rng.uniform(0.17, 0.30)), 0.007)
        curve((0.06, -0.045), (-0.02, -0.055), (-0.13, -0.075), 0.016)
    return layer.astype(np.float32) / 255


def skin(fish: FishClass, body: Body, pose: Pose, rng: Rng) -> Array:
    """Return the color of the trunk (HEIGHT, WIDTH, 3), meaningful only where the trunk is."""
    u, v = body.u, body.v
    streaks = stretched_noise(rng, (40, 18), body)
    clouds = stretched_noise(rng, (10, 16), body)
    fade = smoothstep(*fish.band, v + 0.12 * clouds)[..., None]
    pale = smoothstep(0.15, 0.95, v + 0.12 * clouds)[..., None]
    back, flank, belly = (np.array(color, np.float32) for color in (fish.back, fish.flank, fish.belly))
    color = back + (flank - back) * fade
    color += (belly - color) * pale

    behind_head = smoothstep(0.18, 0.28, u)
    if fish.blotches:
        patches = smoothstep(0.0, 0.7, stretched_noise(rng, (12, 22), body)) * smoothstep(1.0, 0.2, v)
        blend(color, back, np.float32(0.85 * fish.blotches) * patches)
    if fish.stripes:
        wave = np.cos(np.pi * fish.stripes * (v + np.float32(rng.uniform(-0.08, 0.08)) + 0.03 * clouds))
        lines = smoothstep(0.1, 0.9, wave) * behind_head * smoothstep(0.95, 0.6, np.abs(v))
        blend(color, np.array(fish.stripe, np.float32), lines * (0.7 + 0.2 * np.clip(streaks, -1, 1)))
    if fish.spots:
        blend(color, (0.10, 0.09, 0.08), 0.8 * spots(fish.spots, pose, body, rng))
    if fish.lateral:
        bent = 0.04 * smoothstep(0.62, 0.36, u) if fish.lateral > 0.5 else 0.012
        line = np.exp(-(((body.w + bent) / (0.006 + 0.006 * fish.lateral)) ** 2)) * behind_head
        plates = 0.5 + 0.5 * np.sin(u * np.float32(2 * np.pi * 55)) if fish.lateral > 0.5 else 1.0
        blend(color, back * 0.7, np.float32(fish.lateral) * line * plates)
    if fish.segments:
        rings = np.clip((u - 0.36 - 0.25 * np.abs(v * body.below)) / 0.58 * fish.segments, 0, fish.segments)
        step = rings - np.floor(rings)
        color *= (1 - 0.45 * step**5 + 0.12 * (step - 0.5) * (rings > 0))[..., None]
    if fish.scales:
        a, b = u * 46, body.w * 46
        net = np.abs(np.sin(np.pi * (a + b)) * np.sin(np.pi * (a - b)))
        color *= (1 + np.float32(0.28 * fish.scales) * (np.sqrt(net) - 0.6) * behind_head)[..., None]

    round_body = 0.52 + 0.52 * np.sqrt(np.clip(1 - 0.92 * v**2, 0, 1))
    gloss = np.exp(-(((v - np.float32(rng.uniform(-0.45, 0.0))) / np.float32(rng.uniform(0.15, 0.3))) ** 2))
    gloss *= np.float32(rng.uniform(0.08, 0.35)) * np.clip(0.8 + 0.3 * streaks, 0, 2) * smoothstep(1.0, 0.75, u)
    return np.asarray(np.clip(color * (round_body * (1 + 0.035 * streaks))[..., None] + gloss[..., None], 0, 1))


def draw_gill_and_mouth(image: Array, fish: FishClass, body: Body, rng: Rng) -> None:
    """Draw the rim of the gill cover, the spot behind it, the golden band in front of the eye, and the mouth."""
    u, w = body.u, body.w
    inside = body.cover(edge_distance(body))
    back = np.array(fish.back, np.float32)
    gill, bow = np.float32(0.235 + rng.normal(0, 0.006)), np.float32(0.55 * (fish.upper[2] + fish.lower[2]) + 0.04)
    off_rim = np.hypot(u - (gill - bow), w - 0.01) - bow
    rim = np.exp(-((off_rim / 0.007) ** 2)) * (u > gill - 0.7 * bow) * smoothstep(1.0, 0.7, np.abs(body.v))
    blend(image, back * 0.55, inside * 0.6 * rim)
    if fish.gill_spot:
        size = np.float32(fish.gill_spot * rng.uniform(0.85, 1.2))
        spot = np.exp(-((np.hypot(u - gill - 0.012, (w + 0.035) * 0.75) / size) ** 4))
        blend(image, (0.10, 0.08, 0.08), inside * 0.8 * spot)
    if fish.brow:
        u_eye, w_eye, _ = fish.eye
        band = np.exp(-(((u - u_eye + 0.065) / 0.018) ** 2 + ((w - w_eye + 0.01) / 0.055) ** 2))
        blend(image, (0.88, 0.70, 0.20), inside * np.float32(0.9 * fish.brow) * band)
    mouth = np.exp(-(((w - 0.018 - 0.25 * u) / 0.005) ** 2)) * smoothstep(0.075, 0.055, u)
    blend(image, back * 0.4, inside * 0.75 * mouth)


def draw_eye(image: Array, fish: FishClass, body: Body, iris: float, rng: Rng) -> None:
    """Draw an eye with a glint; ``iris`` is the pupil's share of the radius, 0 for a shrimp (all pupil)."""
    u, w, radius = fish.eye
    off = np.hypot(body.u - np.float32(u), body.w - np.float32(w))
    if iris:
        ring = np.array([0.80, 0.74, 0.56], np.float32) * np.float32(rng.uniform(0.75, 1.1))
        blend(image, ring, body.cover(radius - off))
    blend(image, (0.03, 0.03, 0.05), body.cover(radius * (iris or 1) - off))
    glint = np.hypot(body.u - np.float32(u - 0.2 * radius), body.w - np.float32(w - 0.25 * radius))
    blend(image, (0.95, 0.95, 0.95), body.cover(radius * 0.2 - glint))


def draw_pectoral(image: Array, fish: FishClass, body: Body, rng: Rng) -> None:
    """Draw the pectoral fin, folded against the side."""
    tilt, length = rng.uniform(0.0, 0.6), 0.16 * rng.uniform(0.8, 1.2)
    du, dw = body.u - 0.25, body.w - np.float32(0.3 * fish.lower[3])
    along, across = np.cos(tilt) * du + np.sin(tilt) * dw, np.cos(tilt) * dw - np.sin(tilt) * du
    half = 0.026 * np.sqrt(np.clip(along / length * 2, 0, 1)) * np.clip(1.35 - along / length, 0, 1)
    cover = body.cover(np.minimum(half - np.abs(across), np.minimum(along, length - along)).astype(np.float32))
    blend(image, rays(np.array(fish.fins, np.float32), 30 * across / (0.02 + along * 0.25)), 0.75 * cover)


def spots(count: int, pose: Pose, body: Body, rng: Rng) -> Array:
    """Return the coverage of round spots on back, flank and tail."""
    layer = np.zeros((HEIGHT, WIDTH), np.uint8)
    number = int(count * rng.uniform(0.7, 1.3))
    u, v, size = rng.uniform(0.06, 1.0, number), rng.uniform(-0.95, 0.35, number), rng.uniform(0.007, 0.014, number)
    w = v * np.interp(u, STATIONS, np.full(len(STATIONS), 0.11))
    for (x, y), radius in zip(pose.to_canvas(np.stack([u, w], 1)), size * pose.length, strict=True):
        cv2.circle(layer, (round(x * 16), round(y * 16)), round(radius * 16), 255, -1, cv2.LINE_AA, 4)
    return layer.astype(np.float32) / 255


def expose(image: Array, rng: Rng) -> Array:
    """Simulate light and camera: vignette, white balance, date stamp, blur, grain; returns 0 to 1."""
    rows, columns = np.mgrid[-1 : 1 : HEIGHT * 1j, -1 : 1 : WIDTH * 1j].astype(np.float32)
    tilt = rng.uniform(-0.15, 0.15, 2).astype(np.float32)
    vignette = 1 + tilt[0] * columns + tilt[1] * rows - np.float32(rng.uniform(0.05, 0.25)) * (columns**2 + rows**2) / 2
    warm = rng.normal(0, 0.03)
    balance = rng.uniform(0.9, 1.12) * (1 + np.array([warm, 0, -warm]) + rng.normal(0, 0.02, 3))
    image *= vignette[..., None] * balance.astype(np.float32)
    if rng.random() < 0.4:
        stamp(image, STAMPS[rng.integers(len(STAMPS))], upright=rng.random() < 0.5)
    image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.5, 0.9))
    image += rng.normal(0, 0.008, (HEIGHT, WIDTH, 1)).astype(np.float32)
    return np.clip(image, 0, 1)


def stamp(image: Array, text: str, upright: bool) -> None:
    """Draw the date in yellow, always in one of two places, as cameras do."""
    layer = np.zeros((HEIGHT, WIDTH) if upright else (WIDTH, HEIGHT), np.uint8)
    at = (layer.shape[1] - 120, layer.shape[0] - 14)
    cv2.putText(layer, text, at, cv2.FONT_HERSHEY_SIMPLEX, 0.5, 255, 1, cv2.LINE_AA)
    cover = (layer if upright else layer.T[::-1]).astype(np.float32) / 255
    blend(image, (0.86, 0.80, 0.10), cover)


def scratches(rng: Rng, count: int, height: int, width: int) -> Array:
    """Return (height, width) fine cuts, -1 (dark) to 1 (light), most in about the same direction, as a knife leaves."""
    layers = np.zeros((2, height, width), np.uint8)
    main = rng.uniform(0, np.pi)
    x, y = rng.uniform(0, width, count), rng.uniform(0, height, count)
    turn = np.where(rng.random(count) < 0.7, main + rng.normal(0, 0.25, count), rng.uniform(0, np.pi, count))
    reach = rng.exponential(28, count) + 4
    ends = np.stack([x, y, x + reach * np.cos(turn), y + reach * np.sin(turn)], 1)
    for (x0, y0, x1, y1), is_light, depth in zip(
        np.round(ends * 16).astype(int).tolist(), rng.random(count) < 0.6, rng.integers(30, 150, count), strict=True
    ):
        cv2.line(layers[int(is_light)], (x0, y0), (x1, y1), int(depth), 1, cv2.LINE_AA, 4)
    dark, light = layers.astype(np.float32) / 255
    return np.asarray(light - dark)


def noise(rng: Rng, cells: tuple[int, int], height: int, width: int) -> Array:
    """Return (height, width) smooth noise of about unit variance, from ``cells`` (rows, columns) of random values."""
    values = rng.standard_normal(cells, dtype=np.float32)
    return cv2.resize(values, (width, height), interpolation=cv2.INTER_CUBIC)


def stretched_noise(rng: Rng, cells: tuple[int, int], body: Body) -> Array:
    """Return smooth noise that bends with the body; ``cells`` are rows across and columns along it."""
    grid = noise(rng, cells, cells[0] * 8, cells[1] * 8)
    x, y = body.u * (grid.shape[1] - 1), (body.v + 1) * np.float32((grid.shape[0] - 1) / 2)
    return cv2.remap(grid, x.astype(np.float32), y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)


def smoothstep(start: float, end: float, x: Array) -> Array:
    """Interpolate smoothly from 0 at ``start`` to 1 at ``end``, which may be the smaller."""
    t = np.clip((x - np.float32(start)) / np.float32(end - start), 0, 1)
    return np.asarray(t * t * (3 - 2 * t))


def blend(image: Array, color: Array | Color, cover: Array) -> Array:
    """Blend ``color`` into ``image`` in place, weighted by ``cover`` (0 to 1); return ``image``."""
    image += (np.asarray(color, np.float32) - image) * cover[..., None]
    return image
