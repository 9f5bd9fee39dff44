"""Copies of one photograph stay on one side of a split; where they do not, they are counted."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from fish_lightning.data.catalog import SPLITS, make_catalog, named_photographs
from fish_lightning.data.splits import folders_split, kfold_split, photograph_split, random_split
from fish_lightning.errors import UserError


def catalog_of(photographs_per_class, copies=4):
    """Return a catalog of classes a, b, … with these numbers of photographs of ``copies`` images each."""
    rows = [
        (f"{name}/{photograph:02d}-{copy}.png", name, f"{name}/{photograph:02d}", "")
        for name, count in zip("abcdefghi", photographs_per_class, strict=False)
        for photograph in range(count)
        for copy in range(copies)
    ]
    return make_catalog(Path("root"), rows)


def sides(catalog, splits):
    """Return the splits of each photograph's images."""
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
def test_each_class_is_within_one_photograph_of_its_targets(seed):
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
def test_a_photograph_with_two_labels_stays_on_one_side(seed, split):
    rows = [(f"{c}/{i:02}.png", c, f"{c}/{i // 2}", "") for c in "ab" for i in range(40)]
    rows += [(f"b/wrong{i:02}.png", "b", f"a/{i}", "") for i in range(20)]  # every photograph of a has copies in b
    catalog = make_catalog(Path("root"), rows)
    splits = split(catalog, seed=seed)
    assert all(len(where) == 1 for where in sides(catalog, splits).values())


@pytest.mark.parametrize("missing", [["val"], ["test"], ["val", "test"]])
@pytest.mark.parametrize("seed", range(3))
def test_a_missing_split_folder_is_drawn_from_train_by_photograph(missing, seed):
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


def test_a_random_split_leaks_and_the_catalog_counts_it():
    catalog = catalog_of([30, 30, 30])
    mixed = catalog.with_splits(random_split(catalog, seed=0))
    trained = set(mixed.photographs[mixed.splits == "train"])
    by_hand = sum(
        split == "test" and name in trained for split, name in zip(mixed.splits, mixed.photographs, strict=True)
    )
    assert mixed.leaked().sum() == by_hand > 40


def test_a_class_with_few_photographs_is_in_train_and_is_reported(capsys):
    catalog = catalog_of([10, 1, 2])
    splits = photograph_split(catalog, seed=0)
    assert set(splits[catalog.labels == 1]) == {"train"}
    assert set(splits[catalog.labels == 2]) == {"train", "test"}
    printed = capsys.readouterr().out
    assert "note: class 'b' has only one photograph and is missing from val and test" in printed
    assert "note: class 'c' has only two photographs and is missing from val" in printed


def test_folds_test_each_image_once_and_keep_photographs_together():
    catalog = catalog_of([11, 7, 20])
    folds = [kfold_split(catalog, seed=3, folds=5, fold=fold) for fold in range(5)]
    assert np.array_equal(sum((splits == "test").astype(int) for splits in folds), np.ones(len(catalog)))
    for splits in folds:
        assert all(len(where) == 1 for where in sides(catalog, splits).values())
        assert {"train", "val", "test"} == set(splits)
        assert abs((splits == "test").mean() - 0.2) < 0.06
        assert abs((splits == "val").mean() - 0.08) < 0.06


@pytest.mark.parametrize(("folds", "fold"), [(5, 5), (5, -1), (1, 0)])
def test_a_fold_out_of_range_is_refused(folds, fold):
    with pytest.raises(
        UserError, match=rf"split.fold={fold} is not one of split.folds={folds}: at least 2 folds, numbered from 0"
    ):
        kfold_split(catalog_of([5, 5]), seed=0, folds=folds, fold=fold)


@pytest.mark.parametrize(("split", "name"), [(photograph_split, "photograph"), (kfold_split, "kfold")])
def test_unknown_photographs_are_an_error_with_three_remedies(split, name):
    catalog = catalog_of([5, 5])
    blank = catalog.with_photographs(np.full(len(catalog), ""))
    with pytest.raises(UserError) as raised:
        split(blank, seed=0)
    for word in (f"split={name}: ", "data.find_copies=true", "data.photograph=REGEX", "split=random"):
        assert word in str(raised.value)


def test_a_pattern_identifies_photographs_by_its_first_group_within_a_class():
    catalog = catalog_of([2, 2])
    names = named_photographs(catalog, r"/(\d+)-")
    assert names.tolist() == catalog.photographs.tolist()


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("IMG_[0-9]+", "'IMG_[0-9]+' matches none of the paths, such as a/00-0.png"), ("(", "'(' is not a regular expr")],
)
def test_a_pattern_that_is_invalid_or_matches_nothing_is_refused(pattern, message):
    with pytest.raises(UserError) as raised:
        named_photographs(catalog_of([2, 2]), pattern)
    assert message in str(raised.value)


def scene(seed):
    """Return a unique photograph (120, 160, 3), clouds with a striped body, drawn with NumPy and Pillow only."""
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


def test_no_test_image_has_a_copy_in_training_by_construction(tmp_path, make_data):
    rng, truth = np.random.default_rng(7), {}
    numbers = iter(rng.permutation(1000))
    for label, name in enumerate(("brill", "dab", "turbot")):
        (tmp_path / name).mkdir()
        for photograph in range(5):
            image = scene(100 * label + photograph)
            for suffix, copy in COPIES_BY_PILLOW:
                file = tmp_path / name / f"{next(numbers):03}.{suffix}"  # the name says nothing
                copy(image).save(file)
                truth[file.relative_to(tmp_path).as_posix()] = (name, photograph)

    def leaked(data):
        of = {split: {truth[path] for path in data.catalog.paths[data.catalog.splits == split]} for split in SPLITS}
        assert all(of.values())
        return sum(truth[path] in of["train"] for path in data.catalog.paths[data.catalog.splits == "test"])

    assert leaked(make_data(tmp_path, split=random_split)) > 12
    data = make_data(tmp_path, split=photograph_split, find_copies=True)
    assert leaked(data) == 0
    assert data.catalog.leaked().sum() == 0
