"""Copies of one photograph stay on one side of a split; where they do not, it is counted."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from fish_lightning.data.catalog import SPLITS, make_catalog, named_photographs
from fish_lightning.data.sources import ArchiveSource
from fish_lightning.data.splits import folders_split, kfold_split, photograph_split, random_split
from fish_lightning.errors import UserError


def catalog_of(photographs_per_class, copies=4):
    """A table of classes a, b, … with that many photographs each, ``copies`` images a photograph."""
    rows = [
        (f"{name}/{photograph:02d}-{copy}.png", name, f"{name}/{photograph:02d}", "")
        for name, count in zip("abcdefghi", photographs_per_class, strict=False)
        for photograph in range(count)
        for copy in range(copies)
    ]
    return make_catalog(Path("root"), rows)


def sides(catalog, splits):
    """The splits that each photograph's images are in."""
    return {name: set(splits[catalog.photographs == name]) for name in np.unique(catalog.photographs)}


@pytest.mark.parametrize("seed", range(5))
def test_copies_of_a_photograph_stay_on_one_side(seed):
    catalog = catalog_of([30, 13, 8])
    splits = photograph_split(catalog, seed=seed)
    assert all(len(where) == 1 for where in sides(catalog, splits).values())
    assert catalog.with_splits(splits).leaked().sum() == 0
    for label, photographs in enumerate([30, 13, 8]):
        images = photographs * 4
        tested, validated = ((splits == name) & (catalog.labels == label) for name in ("test", "val"))
        assert abs(tested.sum() - 0.15 * images) <= 4  # within one photograph of its target
        assert abs(validated.sum() - 0.10 * 0.85 * images) <= 4


@pytest.mark.parametrize("seed", range(40))
def test_each_class_is_within_one_photograph_of_its_targets_however_uneven_the_photographs(seed):
    rng = np.random.default_rng(seed)
    sizes = {name: rng.integers(1, rng.integers(2, 40), rng.integers(3, 60)) for name in "abcd"}
    rows = [
        (f"{name}/{photograph:02}-{copy:02}.png", name, f"{name}/{photograph}", "")
        for name, photographs in sizes.items()
        for photograph, copies in enumerate(photographs)
        for copy in range(copies)
    ]
    catalog = make_catalog(Path("root"), rows)
    splits = photograph_split(catalog, seed=seed, test=0.15, val=0.10)
    assert catalog.with_splits(splits).leaked().sum() == 0
    for label, name in enumerate(catalog.classes):
        mine, images = catalog.labels == label, int(sizes[name].sum())
        tested, validated = (int((mine & (splits == split)).sum()) for split in ("test", "val"))
        assert abs(tested - 0.15 * images) <= sizes[name].max()
        assert abs(validated - 0.10 * (images - 0.15 * images)) <= sizes[name].max()
        assert (mine & (splits == "train")).any()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("split", [photograph_split, kfold_split])
def test_a_photograph_under_two_labels_stays_on_one_side_too(seed, split):
    rows = [(f"{c}/{i:02}.png", c, f"{c}/{i // 2}", "") for c in "ab" for i in range(40)]
    rows += [(f"b/wrong{i:02}.png", "b", f"a/{i}", "") for i in range(20)]  # every photograph of a is under b too
    catalog = make_catalog(Path("root"), rows)
    splits = split(catalog, seed=seed)
    assert all(len(where) == 1 for where in sides(catalog, splits).values())


@pytest.mark.parametrize("missing", [["val"], ["test"], ["val", "test"]])
@pytest.mark.parametrize("seed", range(3))
def test_what_no_folder_says_is_drawn_from_train_in_whole_photographs(missing, seed):
    rows = [
        (f"{part}/{c}/{i:03}.png", c, f"{part}/{c}/{i // 5}", part)
        for part, count in (("train", 100), ("val", 20), ("test", 20))
        if part not in missing
        for c in "abc"
        for i in range(count)
    ]
    catalog = make_catalog(Path("root"), rows)
    splits = folders_split(catalog, seed=seed)
    assert all(len(where) == 1 for where in sides(catalog, splits).values())
    left = 100.0
    for name in [name for name in ("test", "val") if name in missing]:
        share = {"test": 0.15, "val": 0.10}[name]
        for label in range(3):
            drawn = int(((splits == name) & (catalog.labels == label)).sum())
            assert abs(drawn - share * left) <= 5
        left -= drawn
    kept = catalog.splits != "train"
    assert np.array_equal(splits[kept], catalog.splits[kept])


def test_random_split_leaks_and_the_catalog_counts_it():
    catalog = catalog_of([30, 30, 30])
    mixed = catalog.with_splits(random_split(catalog, seed=0))
    trained = set(mixed.photographs[mixed.splits == "train"])
    by_hand = sum(
        split == "test" and name in trained for split, name in zip(mixed.splits, mixed.photographs, strict=True)
    )
    assert mixed.leaked().sum() == by_hand > 40


def test_a_class_with_one_photograph_is_trained_on_and_it_is_said(capsys):
    catalog = catalog_of([10, 1, 2])
    splits = photograph_split(catalog, seed=0)
    assert set(splits[catalog.labels == 1]) == {"train"}
    assert set(splits[catalog.labels == 2]) == {"train", "test"}
    said = capsys.readouterr().out
    assert "note: class 'b' has 1 photograph(s): it is trained on, but not validated or tested" in said
    assert "note: class 'c' has 2 photograph(s): it is trained on, but not validated" in said


def test_folds_test_each_image_once_and_never_divide_a_photograph():
    catalog = catalog_of([11, 7, 20])
    folds = [kfold_split(catalog, seed=3, folds=5, fold=fold) for fold in range(5)]
    assert np.array_equal(sum((splits == "test").astype(int) for splits in folds), np.ones(len(catalog)))
    for splits in folds:
        assert all(len(where) == 1 for where in sides(catalog, splits).values())
        assert {"train", "val", "test"} == set(splits)
        assert abs((splits == "test").mean() - 0.2) < 0.06
        assert abs((splits == "val").mean() - 0.08) < 0.06


@pytest.mark.parametrize(("folds", "fold"), [(5, 5), (5, -1), (1, 0)])
def test_a_fold_that_is_none_is_an_error(folds, fold):
    with pytest.raises(UserError, match=rf"split.fold={fold} of split.folds={folds}; folds are numbered from 0"):
        kfold_split(catalog_of([5, 5]), seed=0, folds=folds, fold=fold)


@pytest.mark.parametrize(("split", "name"), [(photograph_split, "photograph"), (kfold_split, "kfold")])
def test_unknown_photographs_are_an_error_that_names_three_ways_out(split, name):
    catalog = catalog_of([5, 5])
    blank = catalog.with_photographs(np.full(len(catalog), ""))
    with pytest.raises(UserError) as raised:
        split(blank, seed=0)
    for word in (f"split={name}: ", "data.find_copies=true", "data.photograph=REGEX", "split=random"):
        assert word in str(raised.value)


def test_a_pattern_names_photographs_by_its_group_within_the_class():
    catalog = catalog_of([2, 2])
    names = named_photographs(catalog, r"/(\d+)-")
    assert names.tolist() == catalog.photographs.tolist()


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("IMG_[0-9]+", "'IMG_[0-9]+' matches none of the paths, such as a/00-0.png"), ("(", "'(' is not a regular expr")],
)
def test_a_pattern_that_matches_nothing_or_is_none_is_an_error(pattern, message):
    with pytest.raises(UserError) as raised:
        named_photographs(catalog_of([2, 2]), pattern)
    assert message in str(raised.value)


def scene(seed):
    """(120, 160, 3) clouds with a striped body: a photograph like no other, drawn by NumPy and Pillow alone."""
    rng = np.random.default_rng(seed)
    layers = [rng.normal(0, 30, (n, n, 3)) for n in (4, 12, 40)]
    clouds = sum(np.stack([zoomed(layer[..., c]) for c in range(3)], axis=-1) for layer in layers)
    image = Image.fromarray((110 + clouds).clip(10, 245).astype(np.uint8))
    draw, (x, y) = ImageDraw.Draw(image), rng.integers(20, 60, 2)
    draw.ellipse((x, y, x + 70, y + 30), fill=tuple(rng.integers(40, 240, 3).tolist()))
    for stripe in range(5):
        draw.line((x + 10 + 12 * stripe, y + 5, x + 6 + 12 * stripe, y + 25), fill=(20, 20, 30), width=3)
    return image


def zoomed(layer):
    return np.asarray(Image.fromarray(layer.astype(np.float32)).resize((160, 120), Image.Resampling.BICUBIC))


COPIES_BY_PILLOW = [
    ("png", lambda image: image),
    ("jpg", ImageOps.mirror),
    ("webp", ImageOps.flip),
    ("jpg", lambda image: image.rotate(90, expand=True)),
    ("png", lambda image: image.rotate(31, Image.Resampling.BICUBIC)),
    ("jpg", lambda image: ImageOps.mirror(image).rotate(200, Image.Resampling.BICUBIC)),
    ("jpg", lambda image: image.resize((240, 180), Image.Resampling.LANCZOS)),
    ("bmp", lambda image: ImageEnhance.Brightness(image).enhance(1.05)),
]


def test_no_tested_image_of_a_folder_has_a_copy_in_training_by_the_truth_of_how_it_was_made(tmp_path, make_data):
    rng, truth = np.random.default_rng(7), {}
    names = iter(rng.permutation(1000))
    for label, kind in enumerate(("brill", "dab", "turbot")):
        (tmp_path / kind).mkdir()
        for photograph in range(7):
            image = scene(100 * label + photograph)
            for suffix, copy in COPIES_BY_PILLOW:
                file = tmp_path / kind / f"{next(names):03}.{suffix}"  # the name says nothing
                copy(image).save(file)
                truth[file.relative_to(tmp_path).as_posix()] = (kind, photograph)

    def leaked(data):
        of = {split: {truth[path] for path in data.catalog.paths[data.catalog.splits == split]} for split in SPLITS}
        assert all(of.values())
        return sum(truth[path] in of["train"] for path in data.catalog.paths[data.catalog.splits == "test"])

    assert leaked(make_data(tmp_path, split=random_split)) > 20
    data = make_data(tmp_path, split=photograph_split, find_copies=True)
    assert leaked(data) == 0
    assert data.catalog.leaked().sum() == 0


@pytest.mark.slow
def test_no_tested_real_fish_has_a_copy_in_training_by_turning_it_and_looking(tmp_path, make_data, shared_fish):
    """Each tested picture is turned by every fourth degree, plain and mirrored, and compared with each trained one.

    Measured on three kinds: the nearest copy correlates by 0.996 or more, the most alike other photograph by 0.89.
    """
    for kind in ("Shrimp", "Sea Bass"):
        (tmp_path / kind).symlink_to(shared_fish / "Fish_Dataset" / "Fish_Dataset" / kind)
    arguments = {"source": ArchiveSource, "find_copies": True, "cache_dir": tmp_path / "cache"}
    data = make_data(tmp_path, split=photograph_split, **arguments)
    assert most_alike_trained(data.catalog).max() < 0.95
    mixed = data.catalog.with_splits(random_split(data.catalog, seed=0))
    assert (most_alike_trained(mixed) > 0.95).mean() > 0.95  # what a leak looks like


def most_alike_trained(catalog):
    """For each tested image the highest correlation with a training image of its class, over turns and mirrorings."""
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
    """(2 or 1 for each turn, pixels) the middle of a squashed export at its true aspect, standardized."""
    with Image.open(file) as opened:
        image = opened.convert("L").resize((round(size * 590 / 445), size), Image.Resampling.LANCZOS)
    y, x = np.mgrid[:size, : image.width]
    disc = np.hypot(x - (image.width - 1) / 2, y - (size - 1) / 2) < 0.44 * size
    views = [image] if list(degrees) == [0] else [image, ImageOps.mirror(image)]
    rows = [np.asarray(v.rotate(d, Image.Resampling.BICUBIC), np.float32)[disc] for v in views for d in degrees]
    centred = [row - row.mean() for row in rows]
    return np.array([row / np.linalg.norm(row) for row in centred])
