"""Compare two images: are they copies of one photograph?

:class:`Features` holds a small gray image, SIFT keypoints and a nearly rotation-invariant signature of each image.
:func:`compare` aligns two of them: matches of keypoints, plain and mirrored, give an affine map, and ECC refines it to
subpixel accuracy. Then *every neighborhood* of the overlap must agree. Keypoints alone do not suffice, since date
stamps and scratches of the cutting board match between different photographs; nor does the correlation of the whole
overlap, which the board dominates.

The constants were measured on the fish archive: 26,381 pairs of copies, and the four most similar pairs of images of
any two photographs.
"""

import hashlib
import itertools
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

#: Longer side of the compared images, in pixels: that of the archive's 256x256 version, and enough for fish scales.
SIDE = 256
#: The strongest SIFT keypoints of an image; at least 31 of them agree between copies.
KEYPOINTS = 256
#: Pixels up to this value that are connected to the border are no content: JPEG leaves black corners above 0.
BLACK = 16
#: Gray value from which brightening may have clipped a channel at 255.
CLIPPED = 250.0
#: The signature: mean color of each ring around the center, and magnitudes of the first Fourier terms along it.
RINGS, ANGLES, TERMS = 6, 64, 6

#: Matches of keypoints that an affine map must explain. Between copies: 31 or more.
INLIERS = 8
#: Maximum ratio of an affine map's singular values, and maximum scale. 590x445 resized to 256x256: 1.33; rotated: 1.76.
STRETCH, SCALE = 2.5, 3.0
#: Share of the smaller image that the overlap must cover. Rotated copies: 0.74 or more.
OVERLAP = 0.3
#: Below this many keypoints, flips and quarter turns are tried instead, which must reach this correlation.
FEW, EXACT = 64, 0.995
#: Side of a neighborhood in pixels (an eye, a few scales), and the gray variance below which texture is noise.
WINDOW, NOISE = 25, 30.0
#: Minimum agreement of a neighborhood. The worst of a copy: 0.946, of one saved with JPEG quality 20: 0.807.
AGREES = 0.8
#: Minimum correlation. Copies: 0.996 or more; shots of an unchanged scene: 0.985; other shots: 0.974 or less.
CORRELATION = 0.98
#: Share of neighborhoods that may disagree between shots of an unchanged scene: up to 0.06 there, 0.1 to 0.15 where
#: camera or light changed and the correlation is still 0.98.
DISAGREEMENT = 0.1


class Features:
    """Features of N images, 100 KB each, in a memory-mapped temporary file.

    Attributes:
        pixels: (N, SIDE, SIDE) gray images; 0 is "no content": a black corner, or outside the image.
        shapes: (N, 2) height and width of each image within ``pixels``.
        blur: (N,) factor by which the image was enlarged, 1.0 or more.
        points: (N, KEYPOINTS, 2) x and y coordinates of the keypoints.
        descriptors: (N, KEYPOINTS, 128) RootSIFT descriptors (Arandjelović and Zisserman, CVPR 2012), norm 255.
        counts: (N,) number of keypoints.
        signatures: (N, 3 * RINGS * (1 + TERMS)) signatures.
        digests: (N,) hash of the pixels; equal for exact copies, empty for unreadable files.
    """

    def __init__(self, n: int, folder: Path | None) -> None:
        self.pixels: Pixels = _temporary_array((n, SIDE, SIDE), np.uint8, folder)
        self.descriptors: Pixels = _temporary_array((n, KEYPOINTS, 128), np.uint8, folder)
        self.points: Floats = _temporary_array((n, KEYPOINTS, 2), np.float32, folder)
        self.shapes = np.zeros((n, 2), dtype=np.int64)
        self.blur = np.ones(n)
        self.counts = np.zeros(n, dtype=np.int64)
        self.signatures = np.zeros((n, 3 * RINGS * (1 + TERMS)), dtype=np.float32)
        self.digests = [b""] * n

    def __len__(self) -> int:
        return len(self.digests)

    def extract(self, i: int, file: Path) -> None:
        """Extract the features of image ``i``; those of an unreadable file stay empty."""
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
        gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        self.shapes[i] = height, width
        self.blur[i] = max(1.0, scale)
        self.pixels[i, :height, :width] = np.maximum(gray, 1) * content
        self.signatures[i] = signature(image, _shrink(content, 2))
        sift = cv2.SIFT.create(nfeatures=KEYPOINTS, contrastThreshold=0.01, edgeThreshold=20)
        keypoints, descriptors = sift.detectAndCompute(gray, _shrink(content, 6))
        self.counts[i] = count = min(len(keypoints), KEYPOINTS)
        if count:
            descriptors = descriptors[:count]
            self.points[i, :count] = [keypoint.pt for keypoint in keypoints[:count]]
            self.descriptors[i, :count] = 255 * np.sqrt(descriptors / descriptors.sum(axis=1, keepdims=True))

    def gray(self, i: int) -> Pixels:
        """Return image ``i`` as (H, W) gray."""
        height, width = self.shapes[i]
        return self.pixels[i, :height, :width]

    def unit_descriptors(self, i: int) -> Floats:
        """Return the (counts[i], 128) descriptors of image ``i``, of norm 1."""
        return np.asarray(self.descriptors[i, : self.counts[i]] / np.float32(255), np.float32)


def find_content(image: Pixels) -> Pixels:
    """Separate the content of an image from the black corners of a rotation.

    Dark pixels connected to the border are excluded. A rotated rectangle is convex, so the convex hull of the rest
    restores dark parts of the content that touch its edge.

    Args:
        image: (H, W, 3) image.

    Returns:
        (H, W) mask, 1 for content; all 1 where nothing would remain.
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
    """Compute a descriptor that is nearly invariant to rotating and flipping an image about its center.

    Along a ring a rotation is a shift and a flip a reversal: neither changes the magnitudes of the Fourier terms.

    Args:
        image: (H, W, 3) RGB image.
        content: (H, W) mask, 1 for content; the rest is ignored.

    Returns:
        (3 * RINGS * (1 + TERMS),): mean Lab color of each ring, then square roots of its Fourier magnitudes.
    """
    height, width = content.shape
    lab = cv2.GaussianBlur(cv2.cvtColor(image, cv2.COLOR_RGB2LAB).astype(np.float32), (0, 0), 2)
    center, radius = (width / 2 - 0.5, height / 2 - 0.5), min(height, width) / 2

    def rings(channels: npt.NDArray[Any]) -> npt.NDArray[Any]:
        # Without the second flag, pixels outside are not 0 but uninitialized memory.
        flags = cv2.INTER_LINEAR | cv2.WARP_FILL_OUTLIERS
        polar = np.asarray(cv2.warpPolar(channels, (RINGS * 8, ANGLES), center, radius, flags))
        return np.asarray(polar.reshape(ANGLES, RINGS, 8, -1).sum(axis=2))

    seen = rings(content.astype(np.float32))
    total = rings(lab * content[..., None])
    mean = total.sum(axis=0) / np.maximum(seen.sum(axis=0), 1)
    deviation = np.where(seen > 2, total / np.maximum(seen, 1) - mean, 0)
    magnitudes = np.abs(np.fft.rfft(deviation, axis=0))[1 : TERMS + 1] / ANGLES
    return np.concatenate([mean.ravel(), np.sqrt(magnitudes).ravel()]).astype(np.float32)


class Similarity(NamedTuple):
    """Similarity of two aligned images over their overlap; the defaults stand for images that cannot be aligned."""

    correlation: float = 0.0  # of the whole overlap, -1 to 1
    worst: float = 0.0  # agreement of the worst neighborhood, -1 to 1
    disagreement: float = 1.0  # share of neighborhoods whose agreement is below ``AGREES``

    @property
    def is_copy(self) -> bool:
        """Whether the images agree in every neighborhood."""
        return self.correlation >= CORRELATION and self.worst >= AGREES

    @property
    def is_same_scene(self) -> bool:
        """Whether the images agree except in a few neighborhoods."""
        return self.correlation >= CORRELATION and self.disagreement <= DISAGREEMENT


def compare(features: Features, i: int, j: int) -> Similarity:
    """Align two images, if their keypoints allow it, and compare their overlap."""
    a, b, blur = features.gray(i), features.gray(j), max(features.blur[i], features.blur[j])
    affine = align(features, i, j)
    if affine is None:
        few = min(len(features.unit_descriptors(i)), len(features.unit_descriptors(j))) < FEW
        return _flipped_or_turned(a, b, blur) if few else Similarity()
    rough = compare_overlap(a, b, affine, blur)
    if rough.is_copy or rough.correlation < 0.8:  # ECC corrects errors of a pixel or two, which cost less correlation
        return rough
    # ECC can diverge where the overlap has little texture; then the map of the keypoints is kept.
    return max(rough, compare_overlap(a, b, _refine(a, b, affine), blur), key=lambda found: found.worst)


def _flipped_or_turned(a: Pixels, b: Pixels, blur: float) -> Similarity:
    """Compare small or smooth images by the best of the eight flips and quarter turns, ``b`` resized to ``a``.

    Such images are similar without being copies, so only a nearly exact match counts.
    """
    (height, width), (h, w) = a.shape, b.shape
    best = Similarity()
    for turned, across, down in itertools.product((False, True), (1, -1), (1, -1)):
        # About the center of b: x and y, or y and x, scaled to the size of a, in each direction.
        x = (0, across * width / h) if turned else (across * width / w, 0)
        y = (down * height / w, 0) if turned else (0, down * height / h)
        linear = np.array([x, y], dtype=np.float64)
        offset = np.array([width - 1, height - 1]) / 2 - linear @ np.array([w - 1, h - 1]) / 2
        found = compare_overlap(a, b, np.column_stack([linear, offset]), blur)
        best = max(best, found, key=lambda similarity: similarity.correlation)
    return best if best.correlation >= EXACT else Similarity()


def align(features: Features, i: int, j: int) -> Affine | None:
    """Find the affine map from image ``j`` to ``i``, plain or mirrored, that most matches of keypoints agree on.

    Returns:
        (2, 3) affine map, or None where no plausible map explains ``INLIERS`` matches.
    """
    best, most = None, INLIERS - 1
    ours, theirs = features.unit_descriptors(i), features.unit_descriptors(j)
    for mirrored in (False, True):
        p, q = _mutual_matches(ours, theirs[:, _MIRROR] if mirrored else theirs)
        if len(p) <= most:
            continue
        affine, inliers = cv2.estimateAffine2D(
            features.points[j, q], features.points[i, p], method=cv2.RANSAC, ransacReprojThreshold=2.5, maxIters=1000
        )  # OpenCV seeds each call the same
        if affine is not None and inliers.sum() > most and _is_plausible(affine, mirrored):
            best, most = affine, int(inliers.sum())
    return best


def compare_overlap(a: Pixels, b: Pixels, affine: Affine, blur: float) -> Similarity:
    """Compare ``a`` with ``b`` warped onto it.

    Both are blurred to the sharpness of the one that was enlarged more, and a global difference in brightness and
    contrast is removed. The agreement of a neighborhood is SSIM's product of contrast and structure (Wang et al., IEEE
    TIP 2004): 1 for equal texture, and about 1 where both contain only noise.

    Args:
        a: (H, W) gray image, 0 for no content.
        b: (h, w) gray image.
        affine: (2, 3) affine map from ``b`` to ``a``.
        blur: standard deviation of the Gaussian blur in pixels.
    """
    warped, overlap = _warp_onto(a, b, affine)
    inside = overlap > 0
    warped_area = np.count_nonzero(b) * abs(np.linalg.det(affine[:, :2]))
    if inside.sum() < OVERLAP * min(np.count_nonzero(a), warped_area):
        return Similarity()
    x, y = _with_equal_light(a, warped, inside)
    x, y = (np.asarray(cv2.GaussianBlur(image, (0, 0), blur), np.float32) for image in (x, y))
    x -= x[inside].mean()
    y -= y[inside].mean()
    deviations = x[inside].std(), y[inside].std()
    if min(deviations) < 1:  # blank
        return Similarity()
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
        return Similarity()
    return Similarity(correlation, float(agreement.min()), float((agreement < AGREES).mean()))


#: Order of a SIFT descriptor's 4 x 4 x 8 numbers in the mirrored image: rows and directions are reversed.
_MIRROR = np.arange(128).reshape(4, 4, 8)[::-1, :, [0, 7, 6, 5, 4, 3, 2, 1]].ravel()


def _mutual_matches(a: Floats, b: Floats, ratio: float = 0.85) -> tuple[Ints, Ints]:
    """Return indices of mutually nearest unit vectors of ``a`` and ``b`` that pass Lowe's ratio test (IJCV 2004)."""
    if min(len(a), len(b)) < 2:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    # cv2.gemm, not @: our threads would wait for NumPy's BLAS and its threads (4 ms instead of 0.2).
    cosines = cv2.gemm(a, b, 1, np.empty((0, 0), np.float32), 0, flags=cv2.GEMM_2_T)
    rows, nearest = np.arange(len(a)), cosines.argmax(axis=1)
    mutual = cosines.argmax(axis=0)[nearest] == rows
    best = cosines[rows, nearest]
    cosines[rows, nearest] = -1
    # Squared distances of unit vectors are 2 - 2 * cosine.
    kept = np.flatnonzero(mutual & (1 - best < ratio**2 * (1 - cosines.max(axis=1))))
    return kept, nearest[kept]


def _is_plausible(affine: Affine, mirrored: bool) -> bool:
    long, short = np.linalg.svd(affine[:, :2], compute_uv=False)
    mirrors = np.linalg.det(affine[:, :2]) < 0
    return bool(short > 1 / SCALE and long < SCALE and long / short < STRETCH and mirrors == mirrored)


def _warp_onto(a: Pixels, b: Pixels, affine: Affine) -> tuple[Pixels, Pixels]:
    """Return ``b`` in the frame of ``a``, and where both have content, at least 4 pixels from any edge."""
    height, width = a.shape
    warped = cv2.warpAffine(b, affine, (width, height), flags=cv2.INTER_LINEAR)
    content = cv2.warpAffine((b > 0).astype(np.uint8), affine, (width, height), flags=cv2.INTER_NEAREST)
    return np.asarray(warped, np.uint8), _shrink((content > 0) & (a > 0), 4)


def _with_equal_light(a: Pixels, b: Pixels, inside: npt.NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Match the brightness and contrast of ``b`` to ``a``, and clip both where one of them may be clipped."""
    clear = inside & (a < CLIPPED) & (b < CLIPPED)
    if clear.sum() < inside.sum() / 4:
        clear = inside
    x, y = a[clear], b[clear]
    gain = x.std() / max(y.std(), 1.0)
    shift = x.mean() - gain * y.mean()
    limit = min(CLIPPED, gain * CLIPPED + shift)
    return np.minimum(a, limit).astype(np.float32), np.minimum(b * gain + shift, limit).astype(np.float32)


def _refine(a: Pixels, b: Pixels, affine: Affine) -> Affine:
    """Refine the map by the enhanced correlation coefficient, ECC (Evangelidis and Psarakis, IEEE TPAMI 2008)."""
    _, overlap = _warp_onto(a, b, affine)
    stop = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 30, 1e-5)
    inverse = cv2.invertAffineTransform(affine).astype(np.float32)
    try:
        _, refined = cv2.findTransformECC(a, b, inverse, cv2.MOTION_AFFINE, stop, overlap, 3)
    except cv2.error:  # no convergence
        return affine
    return np.asarray(cv2.invertAffineTransform(refined))


def _shrink(mask: Any, pixels: int) -> Pixels:
    """Erode a mask, at the image border too."""
    framed = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    return np.asarray(cv2.erode(framed, np.ones((2 * pixels + 1,) * 2, np.uint8)), np.uint8)[1:-1, 1:-1]


def _temporary_array(shape: tuple[int, ...], dtype: type, folder: Path | None) -> Any:
    """Return zeros, memory-mapped to an unnamed file that is deleted with the array."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if size == 0:
        return np.zeros(shape, dtype)
    with tempfile.TemporaryFile(dir=folder) as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)  # a full disk raises here instead of crashing later
        return np.memmap(file, dtype=dtype, mode="r+" if hasattr(os, "posix_fallocate") else "w+", shape=shape)
