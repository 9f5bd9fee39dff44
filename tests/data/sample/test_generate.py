"""The generated sample set: what is in it, that it is no toy, and that it appears whole or not at all."""

import csv
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from fish_lightning.data import sample
from fish_lightning.data.sample.classes import KINDS
from fish_lightning.data.sample.generate import make_sample
from fish_lightning.data.sources import SampleSource
from fish_lightning.data.splits import photograph_split
from fish_lightning.errors import UserError

SMALL = {"photographs_per_kind": 3, "copies": 2}
TINY = {"photographs_per_kind": 1, "copies": 1}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    root = tmp_path_factory.mktemp("cache") / "sample"
    make_sample(root, seed=0, **SMALL)
    return root


@pytest.fixture(scope="module")
def default_set(tmp_path_factory):
    root = tmp_path_factory.mktemp("cache") / "sample"
    make_sample(root)
    return root


def read(path):
    return np.asarray(Image.open(path))


def copies_of(root):
    return sorted(root.glob("Fish_Dataset/Fish_Dataset/*/*[!T]/*.png"))


def mask_of(copy):
    return copy.parent.parent / f"{copy.parent.name} GT" / copy.name


def table_of(root):
    with (root / "photographs.csv").open(newline="", encoding="utf-8") as stream:
        return {row["path"]: row["photograph"] for row in csv.DictReader(stream)}


def names_in(folder):
    return sorted(f.name for f in folder.iterdir())


def everything_in(root):
    return {f.relative_to(root).as_posix(): f.read_bytes() for f in root.rglob("*") if f.is_file()}


def program(root, **arguments):
    """Another process that draws a set, as a second training run would."""
    code = (
        "from pathlib import Path; from fish_lightning.data.sample.generate import make_sample; "
        f"make_sample(Path({str(root)!r}), **{arguments})"
    )
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)


def test_the_layout_is_the_archives(small):
    folders = {f.name for f in (small / "Fish_Dataset" / "Fish_Dataset").iterdir()}
    assert folders == set(KINDS) and len(folders) == 9
    for name in KINDS:
        copies = small / "Fish_Dataset" / "Fish_Dataset" / name / name
        assert [f.name for f in sorted(copies.iterdir())] == [f"{i:05}.png" for i in range(1, 7)]
        assert [f.name for f in sorted(Path(f"{copies} GT").iterdir())] == [f"{i:05}.png" for i in range(1, 7)]
    assert not any(name.startswith(".") for name in names_in(small.parent)), "a temporary folder is left"


def test_the_originals_have_the_archives_spellings_and_suffixes(small):
    originals = small / "NA_Fish_Dataset"
    names = {f.name for f in originals.iterdir()}
    assert names == set(KINDS) - {"Gilt-Head Bream", "Hourse Mackerel"} | {"Gilt Head Bream", "Horse Mackerel"}
    files = [f for f in originals.rglob("*") if f.is_file()]
    assert len(files) == 27
    assert {f.suffix for f in files} == {".JPG", ".jpg", ".png"}
    assert all(re.fullmatch(r"[1-3]\.(JPG|jpg)|0000[1-3]\.png", f.name) for f in files)
    assert {Image.open(f).size for f in files} == {(472, 356)}
    assert {Image.open(f).size for f in copies_of(small)} == {(236, 178)}


def test_every_mask_covers_its_fish_and_nothing_else(small):
    for copy in copies_of(small):
        image, mask = read(copy), read(mask_of(copy))
        assert mask.shape == image.shape[:2]
        assert set(np.unique(mask)) == {0, 255}
        assert 0.03 < (mask > 0).mean() < 0.45, copy
        corners = image.max(-1) == 0
        assert (mask[corners] > 0).sum() < 10, f"{copy}: fish in the black corners"


def test_masks_are_turned_like_their_images(small):
    """Fish and board differ in colour, so the image itself must change more across the mask's edge than elsewhere."""
    for copy in copies_of(small)[::3]:
        grey, mask = cv2.GaussianBlur(read(copy), (0, 0), 1.0).astype(np.float32), read(mask_of(copy))
        ring = np.ones((9, 9), np.uint8)
        inner, outer = mask - cv2.erode(mask, ring), cv2.dilate(mask, ring) - mask
        lit = cv2.erode((grey.max(-1) > 3).astype(np.uint8), ring) > 0  # without the corners
        true_step = np.abs(grey[(inner > 0) & lit].mean(0) - grey[(outer > 0) & lit].mean(0)).sum()
        assert true_step > 6, copy


def test_turned_copies_have_black_corners(small):
    with_corners = 0
    for copy in copies_of(small):
        image = read(copy)
        corner = np.array([image[y, x].max() for y in (0, -1) for x in (0, -1)])
        with_corners += int((corner == 0).sum() >= 2)
    assert with_corners > 0.9 * len(copies_of(small))


def test_the_table_names_the_photograph_of_every_image(small):
    table = table_of(small)
    images = {f.relative_to(small).as_posix() for f in copies_of(small)}
    originals = {f.relative_to(small).as_posix() for f in (small / "NA_Fish_Dataset").rglob("*") if f.is_file()}
    assert set(table) == images | originals
    assert table["Fish_Dataset/Fish_Dataset/Trout/Trout/00001.png"] == "Trout/01"
    assert sorted(table.values()) == sorted(f"{k}/0{n}" for k in KINDS for n in (1, 2, 3) for _ in range(3))
    assert {table[f.relative_to(small).as_posix()] for f in (small / "NA_Fish_Dataset/Horse Mackerel").iterdir()} == {
        "Hourse Mackerel/01", "Hourse Mackerel/02", "Hourse Mackerel/03",
    }  # fmt: skip


def test_the_table_is_true(small):
    """Colour counts of the fish, whatever its turn, are nearest those of the other copy of the same photograph."""

    def colours(image, mask):
        histogram = cv2.calcHist([image], [0, 1, 2], mask, [8, 8, 8], [0, 256] * 3).ravel()
        return np.sqrt(histogram / histogram.sum())

    table, copies = table_of(small), copies_of(small)
    names = np.array([table[f.relative_to(small).as_posix()] for f in copies])
    counts = np.stack([colours(read(f), read(mask_of(f))) for f in copies])
    alike = counts @ counts.T - 2 * np.eye(len(copies))
    assert (names[alike.argmax(1)] == names).mean() > 0.9


def test_the_source_reads_what_was_drawn(small):
    catalog = SampleSource(small, seed=0, **SMALL).read()
    assert len(catalog) == 54 and catalog.classes == tuple(sorted(KINDS))
    assert len(set(catalog.photographs)) == 27


def test_the_same_seed_gives_the_same_bytes_however_many_threads_draw(small, tmp_path, monkeypatch):
    monkeypatch.setattr(sample, "cores", lambda: 1)
    make_sample(tmp_path / "again", seed=0, **SMALL)
    assert everything_in(tmp_path / "again") == everything_in(small)


def test_a_photograph_does_not_depend_on_how_many_there_are(small, tmp_path):
    make_sample(tmp_path / "tiny", seed=0, **TINY)
    file = "Fish_Dataset/Fish_Dataset/Trout/Trout/00001.png"
    assert (tmp_path / "tiny" / file).read_bytes() == (small / file).read_bytes()


def test_another_seed_gives_other_pixels(small, tmp_path):
    make_sample(tmp_path / "other", seed=1, **TINY)
    for copy in copies_of(tmp_path / "other"):
        assert copy.read_bytes() != (small / copy.relative_to(tmp_path / "other")).read_bytes()


@pytest.mark.slow
def test_a_nearest_class_mean_does_not_solve_it(default_set):
    catalog = SampleSource(default_set).read()
    assert len(catalog) == 9 * 30 * 4
    size = sum(f.stat().st_size for f in default_set.rglob("*") if f.is_file())
    assert size < 120e6
    tiny = np.stack([cv2.resize(read(default_set / p), (32, 24), interpolation=cv2.INTER_AREA) for p in catalog.paths])
    pixels = tiny.reshape(len(tiny), -1).astype(np.float64)
    splits = photograph_split(catalog, seed=0)
    train, test = splits == "train", splits == "test"
    means = np.stack([pixels[train & (catalog.labels == label)].mean(0) for label in range(9)])
    nearest = ((pixels[test, None] - means) ** 2).sum(-1).argmin(1)
    accuracy = (nearest == catalog.labels[test]).mean()
    assert 1 / 9 < accuracy < 0.60


def test_a_finished_set_is_not_drawn_again(small):
    before = {f: f.stat().st_mtime_ns for f in [small, *small.rglob("*")]}
    make_sample(small, seed=0, **SMALL)
    assert {f: f.stat().st_mtime_ns for f in [small, *small.rglob("*")]} == before


def test_other_arguments_do_not_pass_for_a_finished_set(small):
    with pytest.raises(UserError, match="drawn with other arguments"):
        make_sample(small, seed=1, **SMALL)


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "letters.txt").write_text("dear")
    with pytest.raises(UserError, match="no finished sample data set"):
        make_sample(tmp_path, **TINY)
    assert names_in(tmp_path) == ["letters.txt"]


def test_a_killed_run_leaves_no_set_and_the_next_one_cleans_up(tmp_path):
    root = tmp_path / "sample"
    process = program(root, photographs_per_kind=30)
    while process.poll() is None and not list(tmp_path.glob(".sample.drawing@*/set/NA_Fish_Dataset/*/*")):
        pass
    process.kill()
    process.communicate()
    assert not root.exists()
    (left,) = tmp_path.iterdir()
    make_sample(root, **TINY)
    assert not left.exists()
    assert names_in(tmp_path) == ["sample"]


def test_the_folder_of_a_run_that_is_alive_stays(tmp_path):
    alive = tmp_path / f".sample.drawing@{socket.gethostname()}@{os.getpid()}@x"
    elsewhere = tmp_path / ".sample.drawing@another-host@1@x"
    forgotten = tmp_path / ".sample.drawing@another-host@2@x"
    for folder in (alive, elsewhere, forgotten):
        folder.mkdir()
    os.utime(forgotten, (0, 0))
    make_sample(tmp_path / "sample", **TINY)
    assert names_in(tmp_path) == sorted([alive.name, elsewhere.name, "sample"])


def test_two_runs_at_once_both_end_well(tmp_path):
    root = tmp_path / "sample"
    processes = [program(root, **TINY) for _ in range(2)]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert names_in(tmp_path) == ["sample"]
    assert len(copies_of(root)) == 9


def test_the_slower_of_two_runs_uses_the_set_of_the_faster(tmp_path, monkeypatch):
    root, draw_set = tmp_path / "sample", sample.draw_set

    def overtaken(folder, recipe, shown_as):
        draw_set(folder, recipe, shown_as)
        draw_set(root, recipe, shown_as)

    monkeypatch.setattr(sample, "draw_set", overtaken)
    make_sample(root, **TINY)
    assert names_in(tmp_path) == ["sample"]


def test_a_place_that_cannot_be_written_is_named_with_the_way_out(tmp_path):
    (tmp_path / "file").write_text("in the way of the cache folder")
    with pytest.raises(UserError) as caught:
        make_sample(tmp_path / "file" / "sample", **TINY)
    message = str(caught.value)
    assert str(tmp_path / "file" / "sample") in message and "FISH_LIGHTNING_CACHE" in message
    assert len(message.splitlines()) <= 5


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path, monkeypatch):
    def full(path, data):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match="No space left on device"):
        make_sample(tmp_path / "sample", **TINY)
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("wrong", [{"seed": -1}, {"photographs_per_kind": 0}, {"copies": 0}])
def test_an_impossible_set_is_refused(tmp_path, wrong):
    with pytest.raises(UserError, match="cannot be drawn with"):
        make_sample(tmp_path / "sample", **wrong)
