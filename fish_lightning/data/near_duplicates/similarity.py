"""Whether two images are copies of one photograph; :mod:`fish_lightning.data.near_duplicates.search` chooses the pairs.

Of each image :class:`Views` keeps a small grey picture, SIFT keypoints, and a signature that turning and flipping
hardly change. :func:`compare` aligns two of them: keypoints, matched plain and mirrored, give an affine map, and ECC
refines it to a small part of a pixel. Then *every neighbourhood* of the overlap must agree. Keypoints alone do not do,
since date stamps and scratches of the board match between different photographs; nor does the correlation of the whole
overlap, which the board dominates.

The constants were measured on ../shared/fish: 26,381 pairs of copies, and the four most alike pairs of images of any
two of its photographs.
"""

import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from fish_lightning.data.decoding import UnreadableImage, decode

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]
Affine = npt.NDArray[np.floating[Any]]

#: Longer side of the pictures that are compared, in pixels: what the squashed exports have, and enough for scales.
SIDE = 256
#: SIFT keypoints an image, the strongest; of these 31 or more agree between copies.
KEYPOINTS = 256
#: What is at most this dark and reaches the border is no content: JPEG leaves black corners a little above 0.
BLACK = 16
#: Grey value from which brightening may have cut a channel off at 255.
CLIPPED = 250.0
#: The signature: mean colour of each ring around the middle, and strength of the first waves along it.
RINGS, ANGLES, WAVES = 6, 64, 6

#: Pairs of keypoints that an affine map must explain. Between copies: 31 or more.
INLIERS = 8
#: How far an affine map may squash, and shrink or enlarge: 590x445 made 256x256 squashes by 1.33, turned, by 1.76.
SQUASH, SCALE = 2.5, 3.0
#: Share of the smaller picture that the overlap must cover. Turned copies: 0.74 or more.
OVERLAP = 0.3
#: Fewer keypoints than this are too few to align by: then flips and quarter turns are tried, which must fit this well.
FEW, EXACT = 64, 0.995
#: Side in pixels of a neighbourhood (an eye, a few scales), and the grey variance below which it is noise.
WINDOW, NOISE = 25, 30.0
#: A neighbourhood agrees from here on. The worst of a copy: 0.946, of one saved as JPEG of quality 20: 0.807.
AGREES = 0.8
#: Correlation of the whole. Copies: 0.996 or more; shots of an untouched scene: 0.985; other shots: 0.974 or less.
CORRELATION = 0.98
#: Share of neighbourhoods that may disagree between shots of an untouched scene: up to 0.06; 0.1 to 0.15 where camera
#: or light have changed and the correlation is still 0.98.
DISAGREEMENT = 0.1


class Views:
    """What is kept of N images to compare them, 100 KB each, in a temporary file that the system pages in and out.

    Attributes:
        pixels: (N, SIDE, SIDE) grey; 0 is "no content": a black corner, or beyond the picture's edge.
        shapes: (N, 2) height and width of each picture within ``pixels``.
        blur: (N,) how far the picture had to be enlarged, 1.0 or more.
        points: (N, KEYPOINTS, 2) x and y of the keypoints.
        descriptors: (N, KEYPOINTS, 128) RootSIFT (Arandjelović and Zisserman, CVPR 2012), length 255.
        counts: (N,) number of keypoints.
        signatures: (N, 3 * RINGS * (1 + WAVES)).
        digests: (N,) hash of the pixels; equal for exact copies, empty for files that cannot be read.
    """

    def __init__(self, n: int, folder: Path | None) -> None:
        self.pixels: Pixels = _temporary_array((n, SIDE, SIDE), np.uint8, folder)
        self.descriptors: Pixels = _temporary_array((n, KEYPOINTS, 128), np.uint8, folder)
        self.points: Floats = _temporary_array((n, KEYPOINTS, 2), np.float32, folder)
        self.shapes = np.zeros((n, 2), dtype=np.int64)
        self.blur = np.ones(n)
        self.counts = np.zeros(n, dtype=np.int64)
        self.signatures = np.zeros((n, 3 * RINGS * (1 + WAVES)), dtype=np.float32)
        self.digests = [b""] * n

    def __len__(self) -> int:
        return len(self.digests)

    def look_at(self, i: int, file: Path) -> None:
        """Fill row ``i``; a file that cannot be read leaves it empty."""
        try:
            image = decode(file)
        except UnreadableImage:
            return
        self.digests[i] = hashlib.blake2b(image.tobytes() + str(image.shape).encode(), digest_size=16).digest()
        scale = SIDE / max(image.shape[:2])
        height, width = (max(1, round(side * scale)) for side in image.shape[:2])
        method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        image = cv2.resize(image, (width, height), interpolation=method).astype(np.uint8, copy=False)
        content = find_content(image)
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        self.shapes[i] = height, width
        self.blur[i] = max(1.0, scale)
        self.pixels[i, :height, :width] = np.maximum(grey, 1) * content
        self.signatures[i] = signature(image, _shrink(content, 2))
        sift = cv2.SIFT.create(nfeatures=KEYPOINTS, contrastThreshold=0.01, edgeThreshold=20)
        keypoints, descriptors = sift.detectAndCompute(grey, _shrink(content, 6))
        self.counts[i] = count = min(len(keypoints), KEYPOINTS)
        if count:
            descriptors = descriptors[:count]
            self.points[i, :count] = [keypoint.pt for keypoint in keypoints[:count]]
            self.descriptors[i, :count] = 255 * np.sqrt(descriptors / descriptors.sum(axis=1, keepdims=True))

    def picture(self, i: int) -> Pixels:
        """(H, W) grey picture of image ``i``."""
        height, width = self.shapes[i]
        return self.pixels[i, :height, :width]

    def unit_descriptors(self, i: int) -> Floats:
        """(counts[i], 128) descriptors of image ``i``, of length 1."""
        return np.asarray(self.descriptors[i, : self.counts[i]] / np.float32(255), np.float32)


def find_content(image: Pixels) -> Pixels:
    """Tell the picture from the black corners that turning it has left.

    What is dark and connected to the border is left out; since a turned rectangle is convex, so is what is kept: dark
    parts of the picture that touch its edge come back with the convex hull.

    Args:
        image: (H, W, 3).

    Returns:
        (H, W), 1 for content, all 1 where nothing would be left.
    """
    dark = cv2.inRange(image, (0, 0, 0), (BLACK, BLACK, BLACK))
    dark = cv2.copyMakeBorder(dark, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=255)
    cv2.floodFill(dark, None, (0, 0), 1)
    kept = cv2.morphologyEx((dark[1:-1, 1:-1] != 1).astype(np.uint8), cv2.MORPH_OPEN, np.ones((5, 5), np.uint8))
    outlines, _ = cv2.findContours(kept, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    if not outlines:
        return np.ones(image.shape[:2], dtype=np.uint8)
    content = np.zeros(image.shape[:2], dtype=np.uint8)
    cv2.fillConvexPoly(content, cv2.convexHull(np.concatenate(outlines)), 1)
    return content


def signature(image: Pixels, content: Pixels) -> Floats:
    """Describe an image so that turning and flipping it about its middle changes little.

    Along a ring a turn is a shift and a flip a reversal: both leave the strengths of the Fourier waves as they are.

    Args:
        image: (H, W, 3) RGB.
        content: (H, W), 1 for content; the rest is not looked at.

    Returns:
        (3 * RINGS * (1 + WAVES),): mean Lab colour of each ring, then roots of the strengths of its first waves.
    """
    height, width = content.shape
    lab = cv2.GaussianBlur(cv2.cvtColor(image, cv2.COLOR_RGB2LAB).astype(np.float32), (0, 0), 2)
    middle, radius = (width / 2 - 0.5, height / 2 - 0.5), min(height, width) / 2

    def rings(channels: npt.NDArray[Any]) -> npt.NDArray[Any]:
        # Without the second flag, what lies outside is not 0 but what was in memory.
        flags = cv2.INTER_LINEAR | cv2.WARP_FILL_OUTLIERS
        polar = np.asarray(cv2.warpPolar(channels, (RINGS * 8, ANGLES), middle, radius, flags))
        return np.asarray(polar.reshape(ANGLES, RINGS, 8, -1).sum(axis=2))

    seen = rings(content.astype(np.float32))
    total = rings(lab * content[..., None])
    mean = total.sum(axis=0) / np.maximum(seen.sum(axis=0), 1)
    deviation = np.where(seen > 2, total / np.maximum(seen, 1) - mean, 0)
    waves = np.abs(np.fft.rfft(deviation, axis=0))[1 : WAVES + 1] / ANGLES
    return np.concatenate([mean.ravel(), np.sqrt(waves).ravel()]).astype(np.float32)


class Likeness(NamedTuple):
    """How two aligned images compare over their overlap; all zeros where they cannot be aligned."""

    correlation: float = 0.0  # of the whole, -1 to 1
    worst: float = 0.0  # agreement of the worst neighbourhood, -1 to 1
    disagreement: float = 1.0  # share of neighbourhoods that agree less than ``AGREES``

    @property
    def is_copy(self) -> bool:
        """Whether no neighbourhood tells the images apart."""
        return self.correlation >= CORRELATION and self.worst >= AGREES

    @property
    def is_same_scene(self) -> bool:
        """Whether the images are copies but for a few small places."""
        return self.correlation >= CORRELATION and self.disagreement <= DISAGREEMENT


def compare(views: Views, i: int, j: int) -> Likeness:
    """Align two images, if keypoints allow it, and compare them where they overlap."""
    a, b, blur = views.picture(i), views.picture(j), max(views.blur[i], views.blur[j])
    affine = align(views, i, j)
    if affine is None:
        few = min(len(views.unit_descriptors(i)), len(views.unit_descriptors(j))) < FEW
        return _flipped_or_turned(a, b, blur) if few else Likeness()
    rough = likeness(a, b, affine, blur)
    if rough.is_copy or rough.correlation < 0.8:  # ECC mends slips of a pixel or two, and those cost less
        return rough
    # ECC can run off where the overlap has little texture: the keypoints' map then stands.
    return max(rough, likeness(a, b, _refine(a, b, affine), blur), key=lambda found: found.worst)


def _flipped_or_turned(a: Pixels, b: Pixels, blur: float) -> Likeness:
    """The best of the eight flips and quarter turns, the frame of ``b`` made that of ``a``; small or smooth images.

    Such images are alike without being copies, so that only a nearly exact one counts.
    """
    (height, width), (h, w) = a.shape, b.shape
    best = Likeness()
    for turned in (False, True):
        for across in (1, -1):
            for down in (1, -1):
                # From the middle of b: x and y, or y and x, to the size of a, each way round.
                x = (0, across * width / h) if turned else (across * width / w, 0)
                y = (down * height / w, 0) if turned else (0, down * height / h)
                linear = np.array([x, y], dtype=np.float64)
                middle = np.array([width - 1, height - 1]) / 2 - linear @ np.array([w - 1, h - 1]) / 2
                found = likeness(a, b, np.column_stack([linear, middle]), blur)
                best = max(best, found, key=lambda alike: alike.correlation)
    return best if best.correlation >= EXACT else Likeness()


def align(views: Views, i: int, j: int) -> Affine | None:
    """The affine map from image ``j`` to ``i``, plain or mirrored, that most keypoint pairs agree on.

    Returns:
        (2, 3), or None where no believable map explains ``INLIERS`` pairs.
    """
    best, most = None, INLIERS - 1
    ours, theirs = views.unit_descriptors(i), views.unit_descriptors(j)
    for mirrored in (False, True):
        p, q = _mutual_matches(ours, theirs[:, _MIRROR] if mirrored else theirs)
        if len(p) <= most:
            continue
        affine, inliers = cv2.estimateAffine2D(
            views.points[j, q], views.points[i, p], method=cv2.RANSAC, ransacReprojThreshold=2.5, maxIters=1000
        )  # OpenCV seeds each call the same
        if affine is not None and inliers.sum() > most and _is_believable(affine, mirrored):
            best, most = affine, int(inliers.sum())
    return best


def likeness(a: Pixels, b: Pixels, affine: Affine, blur: float) -> Likeness:
    """Compare ``a`` with ``b`` laid over it.

    Both are smoothed to the sharpness of the one that was enlarged more; a difference in brightness and contrast of
    the whole is taken out. A neighbourhood's agreement is SSIM's product of contrast and structure (Wang et al., IEEE
    TIP 2004): 1 for equal texture, and about 1 where neither has more than noise.

    Args:
        a: (H, W) grey, 0 for no content.
        b: (h, w) grey.
        affine: (2, 3) from ``b`` to ``a``.
        blur: standard deviation of the smoothing, pixels.
    """
    laid, overlap = _lay_over(a, b, affine)
    inside = overlap > 0
    turned_area = np.count_nonzero(b) * abs(np.linalg.det(affine[:, :2]))
    if inside.sum() < OVERLAP * min(np.count_nonzero(a), turned_area):
        return Likeness()
    x, y = _with_equal_light(a, laid, inside)
    x, y = (np.asarray(cv2.GaussianBlur(picture, (0, 0), blur), np.float32) for picture in (x, y))
    x -= x[inside].mean()
    y -= y[inside].mean()
    deviations = x[inside].std(), y[inside].std()
    if min(deviations) < 1:  # a blank page
        return Likeness()
    correlation = float((x[inside] * y[inside]).mean() / (deviations[0] * deviations[1]))
    x *= overlap
    y *= overlap

    def mean_around(values: Floats) -> Floats:
        return np.asarray(cv2.boxFilter(values, -1, (WINDOW, WINDOW), borderType=cv2.BORDER_CONSTANT))

    seen = mean_around(overlap.astype(np.float32))
    share = np.maximum(seen, 1e-3)
    x_mean, y_mean = mean_around(x) / share, mean_around(y) / share
    variances = mean_around(x * x + y * y) / share - x_mean**2 - y_mean**2
    covariance = mean_around(x * y) / share - x_mean * y_mean
    agreement = ((2 * covariance + NOISE) / (variances + NOISE))[inside & (seen > 0.5)]
    if not agreement.size:
        return Likeness()
    return Likeness(correlation, float(agreement.min()), float((agreement < AGREES).mean()))


#: Order of a SIFT descriptor's 4 x 4 x 8 numbers in the mirrored image: the rows and the directions turn round.
_MIRROR = np.arange(128).reshape(4, 4, 8)[::-1, :, [0, 7, 6, 5, 4, 3, 2, 1]].ravel()


def _mutual_matches(a: Floats, b: Floats, ratio: float = 0.85) -> tuple[Ints, Ints]:
    """Rows of unit vectors ``a`` and ``b`` that are each other's nearest, by far (Lowe's ratio test, IJCV 2004)."""
    if min(len(a), len(b)) < 2:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    # cv2.gemm, not @: threads queue for NumPy's BLAS, which makes threads of its own (4 ms against 0.2).
    cosines = cv2.gemm(a, b, 1, np.empty((0, 0), np.float32), 0, flags=cv2.GEMM_2_T)
    rows, nearest = np.arange(len(a)), cosines.argmax(axis=1)
    mutual = cosines.argmax(axis=0)[nearest] == rows
    best = cosines[rows, nearest]
    cosines[rows, nearest] = -1
    # Squared distances of unit vectors are 2 - 2 * cosine.
    kept = np.flatnonzero(mutual & (1 - best < ratio**2 * (1 - cosines.max(axis=1))))
    return kept, nearest[kept]


def _is_believable(affine: Affine, mirrored: bool) -> bool:
    long, short = np.linalg.svd(affine[:, :2], compute_uv=False)
    mirrors = np.linalg.det(affine[:, :2]) < 0
    return bool(short > 1 / SCALE and long < SCALE and long / short < SQUASH and mirrors == mirrored)


def _lay_over(a: Pixels, b: Pixels, affine: Affine) -> tuple[Pixels, Pixels]:
    """``b`` in the frame of ``a``, and where both have content, 4 pixels from any edge."""
    height, width = a.shape
    laid = cv2.warpAffine(b, affine, (width, height), flags=cv2.INTER_LINEAR)
    content = cv2.warpAffine((b > 0).astype(np.uint8), affine, (width, height), flags=cv2.INTER_NEAREST)
    return np.asarray(laid, np.uint8), _shrink((content > 0) & (a > 0), 4)


def _with_equal_light(a: Pixels, b: Pixels, inside: npt.NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Bring ``b`` to the brightness and contrast of ``a``; what is too bright for one of the two becomes so in both."""
    clear = inside & (a < CLIPPED) & (b < CLIPPED)
    if clear.sum() < inside.sum() / 4:
        clear = inside
    x, y = a[clear], b[clear]
    gain = x.std() / max(y.std(), 1.0)
    shift = x.mean() - gain * y.mean()
    limit = min(CLIPPED, gain * CLIPPED + shift)
    return np.minimum(a, limit).astype(np.float32), np.minimum(b * gain + shift, limit).astype(np.float32)


def _refine(a: Pixels, b: Pixels, affine: Affine) -> Affine:
    """Make the map exact: enhanced correlation coefficient (Evangelidis and Psarakis, IEEE TPAMI 2008)."""
    _, overlap = _lay_over(a, b, affine)
    stop = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 30, 1e-5)
    inverse = cv2.invertAffineTransform(affine).astype(np.float32)
    try:
        _, refined = cv2.findTransformECC(a, b, inverse, cv2.MOTION_AFFINE, stop, overlap, 3)
    except cv2.error:  # it does not converge
        return affine
    return np.asarray(cv2.invertAffineTransform(refined))


def _shrink(mask: Any, pixels: int) -> Pixels:
    """Take a rim off the ones of a mask, at the picture's edge too."""
    framed = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    return np.asarray(cv2.erode(framed, np.ones((2 * pixels + 1,) * 2, np.uint8)), np.uint8)[1:-1, 1:-1]


def _temporary_array(shape: tuple[int, ...], dtype: type, folder: Path | None) -> Any:
    """Zeros in a nameless file that goes when the array does."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if size == 0:
        return np.zeros(shape, dtype)
    with tempfile.TemporaryFile(dir=folder) as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)  # a full disk is an error here, not a crash later
        return np.memmap(file, dtype=dtype, mode="r+" if hasattr(os, "posix_fallocate") else "w+", shape=shape)
