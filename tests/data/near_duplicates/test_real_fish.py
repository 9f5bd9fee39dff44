"""Real photographs: independent alignments confirm the groups, and that no split by photograph leaks."""

import itertools

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from fish_lightning.data.near_duplicates.search import label_errors
from fish_lightning.data.near_duplicates.similarity import CORRELATION
from fish_lightning.data.sources import ArchiveSource
from fish_lightning.data.splits import photograph_split, random_split

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def catalog(tmp_path_factory, make_data, shared_fish):
    """A quarter of the images of three classes, searched once and split by photograph."""
    root = tmp_path_factory.mktemp("fish")
    for name in ("Gilt-Head Bream", "Sea Bass", "Shrimp"):
        folder = root / name / name
        folder.mkdir(parents=True)
        for file in sorted((shared_fish / "Fish_Dataset" / "Fish_Dataset" / name / name).iterdir())[::4]:
            (folder / file.name).symlink_to(file)
    return make_data(root, source=ArchiveSource, find_copies=True, split=photograph_split).catalog


def test_copies_are_in_one_group_and_no_others(catalog):
    """Within a group an alignment without keypoints or signatures finds copies.

    One image of every third group is compared with all others of its class; the most similar one of another group is
    aligned.
    """
    groups, labels = catalog.photograph_numbers, catalog.labels
    assert label_errors(labels, groups) == []
    for label in range(len(catalog.classes)):
        assert np.bincount(groups[labels == label]).max() < 0.15 * (labels == label).sum()
    rng = np.random.default_rng(0)
    files = [catalog.root / path for path in catalog.paths.tolist()]
    members = [np.flatnonzero(groups == group) for group in range(groups.max() + 1)]
    assert sum(len(m) > 1 for m in members) > 0.8 * len(members)
    members = members[::3]
    pairs = [rng.choice(m, 2, replace=False) for m in members if len(m) > 1]
    assert np.median([densely_aligned(files[i], files[j]) for i, j in pairs]) > 0.99
    plain = np.array([discs(file, [0])[0] for file in files])
    for m in members:
        i = rng.choice(m)
        others = np.flatnonzero((labels == labels[i]) & (groups != groups[i]))
        j = others[(discs(files[i], range(0, 360, 4)) @ plain[others].T).max(axis=0).argmax()]
        assert densely_aligned(files[i], files[j]) < CORRELATION, (files[i], files[j])


def test_no_test_image_has_a_copy_in_training(catalog):
    """Each test image is rotated in steps of 4 degrees, plain and mirrored, and compared with each training image.

    Measured on three classes: the nearest copy correlates by 0.996 or more, the most similar other photograph by 0.89.
    """
    assert most_similar_trained(catalog).max() < 0.95
    mixed = catalog.with_splits(random_split(catalog, seed=0))
    leaked = mixed.leaked()[mixed.splits == "test"]  # sorted by class, as the similarities
    assert leaked.mean() > 0.9
    assert ((most_similar_trained(mixed) > 0.95) == leaked).mean() > 0.95


def densely_aligned(first, second):
    """Return the correlation after ECC from 32 rotations and flips of the archive's 590x445 canvas, squashed."""
    a, b = (cv2.imread(str(file)) for file in (first, second))
    masks = [cv2.erode((p.max(axis=2) > 20).astype(np.uint8), np.ones((9, 9), np.uint8)) for p in (a, b)]
    a, b = (cv2.cvtColor(p, cv2.COLOR_BGR2GRAY) for p in (a, b))
    small = [cv2.resize(p, (64, 64), interpolation=cv2.INTER_AREA) for p in (a, b, *masks)]
    squash, middle = np.diag([445 / 590, 1]), np.full(2, 31.5)
    starts = []
    for flip, turn in itertools.product((1, -1), np.deg2rad(np.arange(0, 360, 22.5))):
        rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) @ np.diag([flip, 1])
        linear = squash @ rotation @ np.linalg.inv(squash)
        starts.append(np.column_stack([linear, middle - linear @ middle]).astype(np.float32))
    best = max(
        (refined(*small, start, 40) for start in sorted(starts, key=lambda s: -correlation(*small, s))[:6]),
        key=lambda found: correlation(*small, found),
    )
    best = np.column_stack([best[:, :2], best[:, 2] * 4 + 1.5 - best[:, :2] @ [1.5, 1.5]]).astype(np.float32)
    return correlation(a, b, *masks, refined(a, b, *masks, best, 60))


def refined(a, b, mask_a, _, matrix, steps):
    try:
        return cv2.findTransformECC(a, b, matrix.copy(), cv2.MOTION_AFFINE, (3, steps, 1e-6), mask_a, 5)[1]
    except cv2.error:
        return matrix


def correlation(a, b, mask_a, mask_b, matrix):
    size, inverse = a.shape[::-1], cv2.WARP_INVERSE_MAP
    both = (cv2.warpAffine(mask_b, matrix, size, flags=cv2.INTER_NEAREST | inverse) & mask_a) > 0
    if both.mean() < 0.25:
        return 0.0
    return float(np.corrcoef(a[both], cv2.warpAffine(b, matrix, size, flags=cv2.INTER_CUBIC | inverse)[both])[0, 1])


def most_similar_trained(catalog):
    """Return, for each test image, the highest correlation with a training image of its class, over rotations."""
    best = []
    for label in range(len(catalog.classes)):
        mine = catalog.labels == label
        trained = np.array(
            [discs(catalog.root / path, [0])[0] for path in catalog.paths[mine & (catalog.splits == "train")]]
        )
        for path in catalog.paths[mine & (catalog.splits == "test")]:
            best.append((discs(catalog.root / path, range(0, 360, 4)) @ trained.T).max())
    return np.array(best)


def discs(file, degrees, size=48):
    """Return (1, or 2 per rotation, pixels) the central disc of a squashed image at its true aspect, standardized."""
    with Image.open(file) as opened:
        image = opened.convert("L").resize((round(size * 590 / 445), size), Image.Resampling.LANCZOS)
    y, x = np.mgrid[:size, : image.width]
    disc = np.hypot(x - (image.width - 1) / 2, y - (size - 1) / 2) < 0.44 * size
    views = [image] if list(degrees) == [0] else [image, ImageOps.mirror(image)]
    rows = [np.asarray(v.rotate(d, Image.Resampling.BICUBIC), np.float32)[disc] for v in views for d in degrees]
    centerd = [row - row.mean() for row in rows]
    return np.array([row / np.linalg.norm(row) for row in centerd])
