"""The catalog of an ensemble: trained by any, tested by all."""

from pathlib import Path

import numpy as np
import pytest

from fish_lightning.data.catalog import Catalog, joined_catalog
from fish_lightning.errors import UserError


def catalog(splits, photographs=None, labels=None, root="/images", names="abcdefgh"):
    n = len(splits)
    words = {"T": "train", "v": "val", "t": "test", " ": ""}
    return Catalog(
        root=Path(root),
        paths=np.array([f"{name}.png" for name in names[:n]]),
        labels=np.array(labels or [0] * n),
        photographs=np.array(list(photographs) if photographs else [""] * n, dtype=np.str_),
        splits=np.array([words[split] for split in splits]),
        classes=("bass", "carp"),
    )


def splits_of(*catalogs):
    joined = joined_catalog(catalogs, [f"run {i}" for i in range(len(catalogs))])
    return "".join({"train": "T", "val": "v", "test": "t", "": " "}[split] for split in joined.splits)


def test_an_image_is_trained_by_any_tested_by_all_and_else_validation():
    assert splits_of(catalog("TTTvvvttt"[:8]), catalog("TvtTvtTv")) == "TTTTvvTv"
    assert splits_of(catalog("ttvv"), catalog("tvtv")) == "tvvv"
    assert splits_of(catalog("Tvt"), catalog("tTv"), catalog("vtT")) == "TTT"  # folds


def test_copies_of_a_trained_photograph_are_trained():
    assert splits_of(catalog("Tttt", "xxyy"), catalog("tttt", "xxyy")) == "TTtt"
    # b is a copy of a for the first run, c one of b for the second
    assert splits_of(catalog("Tttt", "xxyz"), catalog("tttt", "wuuz")) == "TTtt"
    assert splits_of(catalog("tttt", "xxyz"), catalog("tTtt", "wuuz")) == "TTTt"


def test_images_that_a_run_does_not_know_are_neither():
    assert splits_of(catalog("ttv"), catalog("tv", names="ab")) == "tv "
    assert splits_of(catalog("t t"), catalog("ttt")) == "t t"


def test_members_keep_labels_and_photographs():
    joined = joined_catalog([catalog("tt", labels=[1, 0]), catalog("tt", "xy", labels=[1, 0])], ["A", "B"])
    assert joined.labels.tolist() == [1, 0] and joined.photographs.tolist() == ["x", "y"]
    assert joined.paths.tolist() == ["a.png", "b.png"] and joined.classes == ("bass", "carp")


def test_other_folders_and_other_labels_are_errors():
    with pytest.raises(UserError, match="A was trained on images in /images, B in /others"):
        joined_catalog([catalog("tt"), catalog("tt", root="/others")], ["A", "B"])
    with pytest.raises(
        UserError, match=r"B has other labels .* for 1 images, for example\nb.png: carp instead of bass"
    ):
        joined_catalog([catalog("tt"), catalog("tt", labels=[0, 1])], ["A", "B"])
