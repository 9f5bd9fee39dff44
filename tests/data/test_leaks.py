"""Copies of one photograph stay on one side of a split; where they do not, it is counted."""

from pathlib import Path

import numpy as np
import pytest

from fish_lightning.data.catalog import make_catalog, named_photographs
from fish_lightning.data.splits import kfold_split, photograph_split, random_split
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
