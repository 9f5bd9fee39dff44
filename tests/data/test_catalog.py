"""The catalog: sorted, complete, and unchanged by a round trip through a file or a checkpoint."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from fish_lightning.data.catalog import COLUMNS, Catalog, make_catalog, without_class
from fish_lightning.errors import UserError

ROWS = [
    ("trout/2.png", "trout", "trout/a", "val"),
    ("bass/1.png", "bass", "bass/a", "train"),
    ("trout/1.png", "trout", "trout/a", "test"),
    ("bass/2, small.png", "bass", "", ""),
]


@pytest.fixture
def catalog():
    return make_catalog(Path("photos"), ROWS)


def test_rows_are_sorted_by_path_and_classes_by_name(catalog):
    assert catalog.paths.tolist() == ["bass/1.png", "bass/2, small.png", "trout/1.png", "trout/2.png"]
    assert catalog.classes == ("bass", "trout")
    assert catalog.labels.tolist() == [0, 0, 1, 1] and catalog.labels.dtype == np.int64
    assert catalog.photographs.tolist() == ["bass/a", "", "trout/a", "trout/a"]
    assert catalog.splits.tolist() == ["train", "", "test", "val"]
    assert len(catalog) == 4


def test_columns_are_arrays_of_fixed_width(catalog):
    for name in ("paths", "labels", "photographs", "splits"):
        column = getattr(catalog, name)
        assert isinstance(column, np.ndarray) and column.dtype != object


def test_indices_and_counts_exclude_images_without_a_split(catalog):
    assert catalog.indices("train").tolist() == [0]
    assert catalog.indices("test").tolist() == [2]
    assert catalog.indices("all").tolist() == [0, 1, 2, 3]
    assert catalog.counts() == {"train": 1, "val": 1, "test": 1}


def test_another_split_column_does_not_change_the_catalog(catalog):
    other = catalog.with_splits(np.array(["val"] * 4))
    assert other.counts() == {"train": 0, "val": 4, "test": 0}
    assert catalog.counts() == {"train": 1, "val": 1, "test": 1}


def test_the_csv_file_has_class_names_as_labels(catalog, tmp_path):
    catalog.write_csv(tmp_path / "new" / "split.csv")
    with (tmp_path / "new" / "split.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.reader(stream))
    assert tuple(rows[0]) == COLUMNS == ("path", "label", "photograph", "split")
    assert rows[1:] == [list(row) for row in sorted(ROWS)]


def test_a_round_trip_through_a_weights_only_checkpoint_changes_nothing(catalog, tmp_path):
    torch.save(catalog.state(), tmp_path / "state.pt")
    again = Catalog.from_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert again.root == catalog.root.resolve() and again.classes == catalog.classes
    for name in ("paths", "labels", "photographs", "splits"):
        assert np.array_equal(getattr(again, name), getattr(catalog, name))
        assert getattr(again, name).dtype.kind == getattr(catalog, name).dtype.kind


@pytest.mark.parametrize(
    ("rows", "classes", "message"),
    [
        ([], None, "no images in photos"),
        ([ROWS[0]], None, "only one class, 'trout', in photos"),
        (ROWS, ["bass", "trout", "eel", "cod"], "class folder without an image: cod, eel (in photos)"),
    ],
)
def test_a_catalog_that_cannot_be_trained_on_is_refused(rows, classes, message):
    with pytest.raises(UserError) as error:
        make_catalog(Path("photos"), rows, classes)
    assert str(error.value).startswith(message)
    assert len(str(error.value).splitlines()) == 2


@pytest.mark.parametrize("which", [1, "carp"])
def test_a_class_is_left_out_by_index_or_by_name(which):
    rows = [
        (f"{name}/{split}.png", name, f"{name}/{split}", split)
        for name in ("bass", "carp", "trout")
        for split in ("train", "val", "test")
    ]
    catalog, left_out = without_class(make_catalog(Path("photos"), rows), which)
    assert catalog.classes == left_out.classes == ("bass", "trout")
    assert catalog.labels.tolist() == [0, 0, 0, 1, 1, 1] and catalog.counts() == {"train": 2, "val": 2, "test": 2}
    assert left_out.paths.tolist() == ["carp/test.png"] and left_out.labels.tolist() == [-1]


@pytest.mark.parametrize(
    ("which", "words"),
    [
        (2, r"data.leave_out=2: expected an index from 0 to 1, or one of bass, trout"),
        ("pike", "data.leave_out=pike: expected an index"),
        (0, "data.leave_out=0: at least 2 classes must remain, not 1"),
    ],
)
def test_a_class_that_cannot_be_left_out_is_refused(catalog, which, words):
    with pytest.raises(UserError, match=words):
        without_class(catalog, which)
