"""Splits: exact totals, stratified, reproducible, copies together, split files reproduced."""

import csv
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from helpers import message_of
from hydra.core.override_parser.overrides_parser import OverridesParser

from fish_lightning.data.catalog import make_catalog, named_photographs
from fish_lightning.data.sources import ArchiveSource, FolderSource
from fish_lightning.data.splits import (
    RecordedSplit,
    file_split,
    folders_split,
    kfold_split,
    name_of_split,
    photograph_split,
    random_split,
    say_if_tracks_are_divided,
)
from fish_lightning.errors import UserError


def catalog_of(sizes, copies=None):
    """Return a catalog of classes c0, c1, … with these sizes; ``copies`` consecutive images share a photograph."""
    rows = [
        (f"c{label}/{i:05}.png", f"c{label}", f"c{label}/{i // copies}" if copies else "", "")
        for label, size in enumerate(sizes)
        for i in range(size)
    ]
    return make_catalog(Path("photos"), rows)


def per_class(catalog, splits, name):
    return np.bincount(catalog.labels[splits == name], minlength=len(catalog.classes)).tolist()


@pytest.mark.parametrize(
    ("sizes", "totals"),
    [
        ([1000] * 9, {"train": 6885, "val": 765, "test": 1350}),
        ([442] * 8 + [440], {"train": 3041, "val": 338, "test": 597}),
        ([10, 10], {"train": 15, "val": 2, "test": 3}),
    ],
)
def test_random_totals_round_up_as_in_scikit_learn(sizes, totals):
    catalog = catalog_of(sizes)
    assert catalog.with_splits(random_split(catalog, seed=42)).counts() == totals


def test_the_totals_of_the_real_photographs(shared_fish):
    catalog = ArchiveSource(shared_fish).read()
    assert catalog.with_splits(random_split(catalog, seed=42)).counts() == {"train": 3041, "val": 338, "test": 597}


def test_random_is_stratified_to_within_one_image_per_class():
    catalog = catalog_of([1000] * 9)
    splits = random_split(catalog, seed=42)
    assert per_class(catalog, splits, "test") == [150] * 9
    assert per_class(catalog, splits, "val") == [85] * 9
    uneven = catalog_of([400, 90, 37])
    splits = random_split(uneven, seed=1)
    for count, size in zip(per_class(uneven, splits, "test"), (400, 90, 37), strict=True):
        assert abs(count - 80 * size / 527) < 1  # 80 = ceil(0.15 * 527)


def test_random_depends_on_the_seed_only_and_is_shuffled():
    catalog = catalog_of([100, 100])
    first = random_split(catalog, seed=42)
    assert np.array_equal(first, random_split(catalog, seed=42))
    assert not np.array_equal(first, random_split(catalog, seed=43))
    tested = np.flatnonzero(first[:100] == "test")
    assert not np.array_equal(tested, np.arange(15)) and not np.array_equal(tested, np.arange(85, 100))


def test_every_image_is_in_one_split_and_the_fractions_are_settings():
    catalog = catalog_of([50, 50])
    splits = random_split(catalog, seed=0, test=0.3, val=0.5)
    assert catalog.with_splits(splits).counts() == {"train": 35, "val": 35, "test": 30}
    assert set(splits) == {"train", "val", "test"} and len(splits) == 100


@pytest.mark.parametrize("sizes", [[1, 1], [2, 1], [1, 1, 1, 1]])
def test_too_few_images_are_an_error_with_their_number(sizes):
    text = message_of(random_split, catalog_of(sizes), seed=42)
    assert f"too few images for this split: {sum(sizes)} images of {len(sizes)} classes in photos" in text


def test_a_class_that_happens_to_have_no_training_image_is_an_error():
    catalog = catalog_of(
        [40, *[1] * 10]
    )  # 8 images are tested: 6 or 7 of the first class, the rest of classes of one image
    assert re.search(r"none of class 'c\d+' in train", message_of(random_split, catalog, seed=42))


def test_whole_photographs_come_as_close_to_the_targets_as_possible():
    catalog = catalog_of([1000] * 9, copies=20)
    splits = photograph_split(catalog, seed=42)
    assert {*per_class(catalog, splits, "test")} <= {140, 160}  # 150 lies between 7 and 8 photographs
    assert {*per_class(catalog, splits, "val")} <= {80}  # 84 to 86 is nearest to 4 of 20
    assert np.array_equal(splits, photograph_split(catalog, seed=42))
    assert not np.array_equal(splits, photograph_split(catalog, seed=43))


def test_an_image_of_unknown_photograph_is_a_photograph_of_its_own():
    rows = [(f"{c}/{i:02}.png", c, f"{c}/{i // 2}" if i < 4 else "", "") for c in "ab" for i in range(20)]
    splits = photograph_split(make_catalog(Path("photos"), rows), seed=3)
    assert splits[0] == splits[1] and splits[2] == splits[3]
    assert all((splits[20 * c : 20 * c + 20] == name).any() for c in (0, 1) for name in ("train", "val", "test"))


@pytest.mark.parametrize("seed", range(8))
def test_three_photographs_of_any_size_give_one_to_each_split(seed):
    rows = [(f"a/{i:02}.png", "a", f"a/{min(i, 2)}", "") for i in range(12)]  # photographs of 1, 1 and 10 images
    rows += [(f"b/{i:02}.png", "b", f"b/{i // 3}", "") for i in range(12)]
    catalog = make_catalog(Path("photos"), rows)
    splits = photograph_split(catalog, seed=seed)
    assert min(per_class(catalog, splits, "train")) > 0
    assert min(per_class(catalog, splits, "val")) > 0
    assert min(per_class(catalog, splits, "test")) > 0


def test_a_split_file_reproduces_the_split(tmp_path):
    catalog = catalog_of([40, 40])
    splits = random_split(catalog, seed=7)
    catalog.with_splits(splits).write_csv(tmp_path / "split.csv")
    assert np.array_equal(file_split(catalog, seed=99, path=str(tmp_path / "split.csv")), splits)


def test_images_missing_from_a_split_file_are_excluded(tmp_path):
    write_split(tmp_path, [(f"c{c}/0000{i}.png", s) for c in (0, 1) for i, s in enumerate(("train", "val", "test"))])
    catalog = catalog_of([5, 5])
    splits = file_split(catalog, seed=0, path=str(tmp_path / "split.csv"))
    assert splits.tolist() == ["train", "val", "test", "", ""] * 2


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("c0/00000.png", "training")], "contains the split 'training'; allowed: train, val, test"),
        ([("c0/99999.png", "train")], "lists 1 images that are not in photos, the first is c0/99999.png"),
        (
            [("c0/00000.png", "train"), ("c1/00000.png", "train")],
            "2 classes in photos leave none in val, none in test",
        ),
    ],
)
def test_a_split_file_of_other_data_is_refused_with_the_reason(tmp_path, rows, message):
    write_split(tmp_path, rows)
    assert message in message_of(file_split, catalog_of([5, 5]), seed=0, path=str(tmp_path / "split.csv"))


def test_a_split_file_that_leaves_a_class_without_training_images_is_an_error(tmp_path):
    rows = [("c0/00000.png", "train"), ("c0/00001.png", "train"), ("c1/00000.png", "val"), ("c1/00001.png", "test")]
    write_split(tmp_path, rows)
    text = message_of(file_split, catalog_of([5, 5]), seed=0, path=str(tmp_path / "split.csv"))
    assert "none of class 'c1' in train" in text


def test_a_missing_or_malformed_split_file_is_refused(tmp_path):
    assert "split.path: no file" in message_of(file_split, catalog_of([5, 5]), seed=0, path=str(tmp_path / "no.csv"))
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    text = message_of(file_split, catalog_of([5, 5]), seed=0, path=str(tmp_path / "other.csv"))
    assert "has no rows with the columns 'path' and 'split'" in text


def test_a_binary_split_file_is_refused(make_image, tmp_path):
    make_image(tmp_path / "photo.png", (9, 9, 9), 1)
    assert "photo.png" in message_of(file_split, catalog_of([5, 5]), seed=0, path=str(tmp_path / "photo.png"))


def test_folders_keep_their_split(make_folder, tmp_path):
    for part, count in (("train", 4), ("val", 2), ("test", 1)):
        make_folder(tmp_path / part, 2, count)
    catalog = FolderSource(tmp_path).read()
    assert np.array_equal(folders_split(catalog, seed=1), catalog.splits)


def test_a_missing_val_or_test_folder_is_drawn_from_train(make_folder, tmp_path):
    make_folder(tmp_path / "train", 2, 20)
    make_folder(tmp_path / "test", 2, 3)
    catalog = FolderSource(tmp_path).read()
    splits = folders_split(catalog, seed=1)
    assert catalog.with_splits(splits).counts() == {"train": 36, "val": 4, "test": 6}
    assert per_class(catalog, splits, "val") == [2, 2]
    assert all(path.startswith("test/") == (split == "test") for path, split in zip(catalog.paths, splits, strict=True))
    assert np.array_equal(splits, folders_split(catalog, seed=1))


def test_folders_without_a_split_are_refused(make_folder, tmp_path):
    text = message_of(folders_split, FolderSource(make_folder(tmp_path, 2)).read(), seed=1)
    assert "has no folders train, val and test" in text


def test_a_recorded_split_is_kept():
    catalog = catalog_of([10, 10])
    splits = random_split(catalog, seed=3)
    recorded = RecordedSplit("kfold")
    assert np.array_equal(recorded(catalog.with_splits(splits), seed=99), splits)
    assert name_of_split(recorded) == "kfold"


def test_a_split_of_ones_own_is_named_as_it_is_typed():
    def random_split(catalog, seed):
        return catalog.splits

    random_split.__qualname__ = "random_split"
    assert name_of_split(random_split) == f"{__name__}.random_split"


def write_split(folder, rows):
    with (folder / "split.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("path", "split"), *rows])


def catalog_by_photograph(photographs):
    """Return a catalog of images ``class/photograph-number`` from ``{class: {photograph: number of images}}``."""
    rows = [
        (f"{name}/{photograph}-{number}.png", name, f"{name}/{photograph}", "")
        for name, sizes in photographs.items()
        for photograph, images in sizes.items()
        for number in range(images)
    ]
    return make_catalog(Path("photos"), rows)


@pytest.mark.parametrize("seed", range(6))
def test_a_photograph_larger_than_the_target_goes_to_train(seed):
    catalog = catalog_by_photograph({"a": {"large": 60, "b": 3, "c": 3}, "z": {str(i): 4 for i in range(10)}})
    splits = photograph_split(catalog, seed)
    assert set(splits[catalog.photographs == "a/large"]) == {"train"}


@pytest.mark.parametrize("fold", range(3))
def test_a_class_with_one_photograph_is_in_train_in_every_fold(fold, capsys):
    catalog = catalog_by_photograph({"one": {"a": 4}, "z": {str(i): 4 for i in range(9)}})
    splits = kfold_split(catalog, 0, folds=3, fold=fold)
    assert set(splits[catalog.photographs == "one/a"]) == {"train"}
    assert "class 'one' has only one photograph, which is in train in all folds" in capsys.readouterr().out


@pytest.mark.parametrize("split", [photograph_split, kfold_split])
def test_many_classes_with_few_photographs_are_told_in_a_line(split, capsys):
    few = {f"one {i:03}": {"a": 4} for i in range(300)} | {f"two {i:03}": {"a": 4, "b": 4} for i in range(300)}
    split(catalog_by_photograph(few | {"z": {str(i): 4 for i in range(99)}}), 0)
    lines = [line for line in capsys.readouterr().out.splitlines() if "each of 300 classes has only" in line]
    assert len(lines) == (2 if split is photograph_split else 1)
    assert lines[0].endswith(", one 007 and 292 more")


@pytest.mark.parametrize("share", [0, 1, 1.5, -0.1, "much"])
@pytest.mark.parametrize("split", [random_split, photograph_split])
def test_a_fraction_out_of_range_is_refused(split, share):
    catalog = catalog_by_photograph({"a": {str(i): 2 for i in range(9)}, "z": {str(i): 2 for i in range(9)}})
    with pytest.raises(UserError, match=rf"split\.test={share}: must be a fraction between 0 and 1"):
        split(catalog, 0, test=share)
    with pytest.raises(UserError, match=rf"split\.val={share}: must be a fraction between 0 and 1"):
        split(catalog, 0, val=share)


def test_a_split_of_whole_photographs_that_misses_its_targets_by_more_than_5_points_says_so(capsys):
    few = catalog_by_photograph({"a": {"1": 42, "2": 27, "3": 31}, "z": {"1": 42, "2": 27, "3": 31}})
    splits = photograph_split(few, 0)
    shares = "/".join(f"{100 * (splits == name).mean():.0f}" for name in ("train", "val", "test"))
    said = f"note: train/val/test have {shares} % of the images, not 76/8/15 %, since photographs are kept whole"
    assert said in capsys.readouterr().out
    photograph_split(catalog_by_photograph({name: {str(i): 3 for i in range(40)} for name in "az"}), 0)
    assert capsys.readouterr().out == ""


def test_folds_of_classes_that_do_not_divide_evenly_are_of_equal_size():
    catalog = catalog_of([13, 14, 11, 13, 13, 14, 13, 14, 14])  # 119 images
    each = catalog.with_photographs(catalog.paths)
    sizes = [int((kfold_split(each, 42, folds=5, fold=fold) == "test").sum()) for fold in range(5)]
    assert sorted(sizes) == [23, 24, 24, 24, 24]


def test_folds_of_classes_that_divide_evenly_are_those_of_the_rule_for_each_class_alone():
    catalog = catalog_of([40, 20, 30], copies=2)
    for fold in range(5):
        splits = kfold_split(catalog, 3, folds=5, fold=fold)
        for label in range(3):
            groups = np.unique(catalog.photographs[catalog.labels == label])
            order = np.random.default_rng([3, 4, label]).permutation(len(groups))
            tested = set(catalog.photographs[(splits == "test") & (catalog.labels == label)])
            assert tested == set(groups[order[fold::5]])


def framed(pattern):
    """Return a catalog of two classes of 6 tracks of 5 frames each."""
    names = [(f"{'ab'[t // 6]}/{pattern.format(t, f)}", "ab"[t // 6]) for t in range(12) for f in range(5)]
    return make_catalog(Path("photos"), [(*name, "", "") for name in names])


@pytest.mark.parametrize("pattern", ["fish_{:03}_{:04}.png", "2024-05-{:02}_{:03}.JPG", "cam1/{}-{}.png"])
def test_frames_of_a_track_on_both_sides_are_pointed_out_with_a_pattern_that_keeps_them_together(pattern, capsys):
    catalog = framed(pattern)
    say_if_tracks_are_divided(catalog, random_split(catalog, 0))
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "of 9 test images are named like training images, such as " in said
    (word,) = re.findall(r"data\.photograph=\S+", said)
    expression = OverridesParser.create().parse_override(shlex.split(word)[0]).value()
    together = catalog.with_photographs(named_photographs(catalog, str(expression)))
    assert len(np.unique(together.photographs)) == 12
    say_if_tracks_are_divided(together, photograph_split(together, 0))
    assert "named like" not in capsys.readouterr().out


@pytest.mark.parametrize("pattern", ["{:02}{:03}.png", "IMG{:02}{:03}.png", "fish_{:02}x{:02}.png", "run_{}_{}x.png"])
def test_names_without_track_and_frame_are_not_pointed_out(pattern, capsys):
    catalog = framed(pattern)
    say_if_tracks_are_divided(catalog, random_split(catalog, 0))
    assert capsys.readouterr().out == ""
