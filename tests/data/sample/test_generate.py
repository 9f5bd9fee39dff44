"""The generated sample set: its contents, that it is not trivial, and that it is complete or absent."""

import csv
import os
import re
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from PIL import Image

from fish_lightning import hardware
from fish_lightning.cli import CONF
from fish_lightning.data.sample import generate
from fish_lightning.data.sample.classes import CLASSES
from fish_lightning.data.sample.generate import make_sample, plan
from fish_lightning.data.sample.recipe import Recipe
from fish_lightning.data.sources import SampleSource
from fish_lightning.data.splits import photograph_split
from fish_lightning.errors import UserError

SMALL = {"photographs_per_kind": 2, "copies": 2}
TINY = {"photographs_per_kind": 1, "copies": 1}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    root = tmp_path_factory.mktemp("cache") / "sample"
    make_sample(root, Recipe(seed=0, **SMALL))
    return root


@pytest.fixture
def one_class(monkeypatch):
    """A set of one class on one board, which is drawn quickly."""
    monkeypatch.setattr(generate, "CLASSES", {"Trout": CLASSES["Trout"]})
    monkeypatch.setattr(generate, "BOARDS", 1)


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


def start_process(root, **arguments):
    """Start another process that generates a set of one class, as a second training run does."""
    code = (
        "from pathlib import Path; from fish_lightning.data.sample import generate; generate.BOARDS = 1; "
        "generate.CLASSES = {'Trout': generate.CLASSES['Trout']}; "
        f"generate.make_sample(Path({str(root)!r}), generate.Recipe(**{arguments}))"
    )
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)


def test_the_layout_is_the_archives(small):
    folders = {f.name for f in (small / "Fish_Dataset" / "Fish_Dataset").iterdir()}
    assert folders == set(CLASSES) and len(folders) == 9
    for name in CLASSES:
        copies = small / "Fish_Dataset" / "Fish_Dataset" / name / name
        assert [f.name for f in sorted(copies.iterdir())] == [f"{i:05}.png" for i in range(1, 5)]
        assert [f.name for f in sorted(Path(f"{copies} GT").iterdir())] == [f"{i:05}.png" for i in range(1, 5)]
    assert not any(name.startswith(".") for name in names_in(small.parent)), "a temporary folder is left"


def test_the_originals_have_the_archives_spellings_and_suffixes(small):
    originals = small / "NA_Fish_Dataset"
    names = {f.name for f in originals.iterdir()}
    assert names == set(CLASSES) - {"Gilt-Head Bream", "Hourse Mackerel"} | {"Gilt Head Bream", "Horse Mackerel"}
    files = [f for f in originals.rglob("*") if f.is_file()]
    assert len(files) == 18
    assert {f.suffix for f in files} == {".JPG", ".jpg", ".png"}
    assert all(re.fullmatch(r"[12]\.(JPG|jpg)|0000[12]\.png", f.name) for f in files)
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


def test_masks_are_rotated_like_their_images(small):
    """Fish and board differ in color, so the image changes across the edge of the mask."""
    for copy in copies_of(small)[::3]:
        gray, mask = cv2.GaussianBlur(read(copy), (0, 0), 1.0).astype(np.float32), read(mask_of(copy))
        ring = np.ones((9, 9), np.uint8)
        inner, outer = mask - cv2.erode(mask, ring), cv2.dilate(mask, ring) - mask
        lit = cv2.erode((gray.max(-1) > 3).astype(np.uint8), ring) > 0  # without the corners
        true_step = np.abs(gray[(inner > 0) & lit].mean(0) - gray[(outer > 0) & lit].mean(0)).sum()
        assert true_step > 6, copy


def test_rotated_copies_have_black_corners(small):
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
    assert sorted(table.values()) == sorted(f"{k}/0{n}" for k in CLASSES for n in (1, 2) for _ in range(3))
    assert {table[f.relative_to(small).as_posix()] for f in (small / "NA_Fish_Dataset/Horse Mackerel").iterdir()} == {
        "Hourse Mackerel/01", "Hourse Mackerel/02",
    }  # fmt: skip


def test_the_table_is_correct(small):
    """The color histogram of a fish is nearest that of the other copy of the same photograph."""

    def colors(image, mask):
        histogram = cv2.calcHist([image], [0, 1, 2], mask, [8, 8, 8], [0, 256] * 3).ravel()
        return np.sqrt(histogram / histogram.sum())

    table, copies = table_of(small), copies_of(small)
    names = np.array([table[f.relative_to(small).as_posix()] for f in copies])
    counts = np.stack([colors(read(f), read(mask_of(f))) for f in copies])
    alike = counts @ counts.T - 2 * np.eye(len(copies))
    assert (names[alike.argmax(1)] == names).mean() > 0.9


def test_the_source_reads_the_set(small):
    catalog = SampleSource(small, seed=0, **SMALL).read()
    assert len(catalog) == 36 and catalog.classes == tuple(sorted(CLASSES))
    assert len(set(catalog.photographs)) == 18


def test_the_bytes_depend_neither_on_the_number_of_threads_nor_of_photographs(small, tmp_path, monkeypatch):
    monkeypatch.setattr(hardware, "cores", lambda: 1)
    make_sample(tmp_path / "again", Recipe(seed=0, **TINY))
    again, whole = everything_in(tmp_path / "again"), everything_in(small)
    images = [name for name in again if name.startswith(("Fish_Dataset", "NA_Fish_Dataset"))]
    assert len(images) == 27 and all(again[name] == whole[name] for name in images)
    assert table_of(tmp_path / "again").items() <= table_of(small).items()


def test_another_seed_gives_other_pixels(small, tmp_path, one_class):
    make_sample(tmp_path / "other", Recipe(seed=1, **TINY))
    make_sample(tmp_path / "first", Recipe(seed=0, **TINY))
    (other,), (first,) = copies_of(tmp_path / "other"), copies_of(tmp_path / "first")
    assert other.read_bytes() != first.read_bytes()


@pytest.mark.slow
def test_nearest_class_means_do_not_solve_it(tmp_path):
    root = tmp_path / "sample"
    make_sample(root, Recipe(photographs_per_kind=8, copies=2))
    catalog = SampleSource(root).read()
    assert len(catalog) == 9 * 8 * 2
    assert sum(f.stat().st_size for f in root.rglob("*") if f.is_file()) < 20e6
    tiny = np.stack([cv2.resize(read(root / p), (32, 24), interpolation=cv2.INTER_AREA) for p in catalog.paths])
    pixels = tiny.reshape(len(tiny), -1).astype(np.float64)
    correct = []
    for seed in range(5):
        splits = photograph_split(catalog, seed=seed)
        train, test = splits == "train", splits == "test"
        means = np.stack([pixels[train & (catalog.labels == label)].mean(0) for label in range(9)])
        nearest = ((pixels[test, None] - means) ** 2).sum(-1).argmin(1)
        correct.extend(nearest == catalog.labels[test])
    assert 1 / 9 < np.mean(correct) < 0.60


def test_a_complete_set_is_not_generated_again(small):
    before = {f: f.stat().st_mtime_ns for f in [small, *small.rglob("*")]}
    make_sample(small, Recipe(seed=0, **SMALL))
    assert {f: f.stat().st_mtime_ns for f in [small, *small.rglob("*")]} == before


def test_a_set_of_other_arguments_is_refused(small):
    with pytest.raises(UserError, match="generated with other arguments"):
        make_sample(small, Recipe(seed=1, **SMALL))


def test_a_folder_with_other_files_is_not_touched(tmp_path):
    (tmp_path / "letters.txt").write_text("dear")
    with pytest.raises(UserError, match="is not a complete sample data set"):
        make_sample(tmp_path, Recipe(**TINY))
    assert names_in(tmp_path) == ["letters.txt"]


def test_a_killed_run_leaves_no_set_and_the_next_one_cleans_up(tmp_path, one_class):
    root = tmp_path / "sample"
    process = start_process(root, photographs_per_kind=30)
    while process.poll() is None and not list(tmp_path.glob(".sample.drawing@*/set/NA_Fish_Dataset/*/*")):
        pass
    process.kill()
    process.communicate()
    assert not root.exists()
    (left,) = tmp_path.iterdir()
    make_sample(root, Recipe(**TINY))
    assert not left.exists()
    assert names_in(tmp_path) == ["sample"]


def test_temporary_folders_of_running_processes_stay(tmp_path, one_class):
    alive = tmp_path / f".sample.drawing@{socket.gethostname()}@{os.getpid()}@x"
    elsewhere = tmp_path / ".sample.drawing@another-host@1@x"
    abandoned = tmp_path / ".sample.drawing@another-host@2@x"
    for folder in (alive, elsewhere, abandoned):
        folder.mkdir()
    os.utime(abandoned, (0, 0))
    make_sample(tmp_path / "sample", Recipe(**TINY))
    assert names_in(tmp_path) == sorted([alive.name, elsewhere.name, "sample"])


def test_two_processes_can_generate_the_set_at_the_same_time(tmp_path):
    root = tmp_path / "sample"
    processes = [start_process(root, **TINY) for _ in range(2)]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert names_in(tmp_path) == ["sample"]
    assert len(copies_of(root)) == 1


def test_the_slower_of_two_processes_uses_the_set_of_the_faster(tmp_path, monkeypatch, one_class):
    root, draw_set = tmp_path / "sample", generate.draw_set

    def overtaken(folder, recipe, shown_as):
        draw_set(folder, recipe, shown_as)
        draw_set(root, recipe, shown_as)

    monkeypatch.setattr(generate, "draw_set", overtaken)
    make_sample(root, Recipe(**TINY))
    assert names_in(tmp_path) == ["sample"]


def test_a_folder_that_cannot_be_written_is_named_with_a_remedy(tmp_path):
    (tmp_path / "file").write_text("in the way of the cache folder")
    with pytest.raises(UserError) as caught:
        make_sample(tmp_path / "file" / "sample", Recipe(**TINY))
    message = str(caught.value)
    assert str(tmp_path / "file" / "sample") in message and "FISH_LIGHTNING_CACHE" in message
    assert len(message.splitlines()) <= 5


def test_a_full_disk_is_reported_and_leaves_nothing(tmp_path, monkeypatch, one_class):
    def full(path, data):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match="No space left on device"):
        make_sample(tmp_path / "sample", Recipe(**TINY))
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("wrong", [{"seed": -1}, {"photographs_per_kind": 0}, {"copies": 0}])
def test_arguments_out_of_range_are_refused(tmp_path, wrong):
    with pytest.raises(UserError, match="cannot be generated with"):
        make_sample(tmp_path / "sample", Recipe(**wrong))


@pytest.mark.parametrize("given", ["typo", "photos", "empty", "file"])
def test_a_given_root_that_is_no_sample_set_is_refused_and_untouched(tmp_path, given):
    (tmp_path / "photos" / "bass").mkdir(parents=True)
    (tmp_path / "photos" / "bass" / "1.png").write_bytes(b"mine")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("mine")
    before = sorted(map(str, tmp_path.rglob("*")))
    with pytest.raises(UserError) as caught:
        SampleSource(tmp_path / given, seed=0, **TINY).prepare()
    text = str(caught.value)
    assert text.startswith(f"data.root: {tmp_path / given} is not a sample data set; did you mean data=folder or data=")
    assert "remove" not in text and "delete" not in text and len(text.splitlines()) == 2
    assert sorted(map(str, tmp_path.rglob("*"))) == before


def test_a_folder_of_the_standard_name_that_holds_something_else_is_not_written_into(tmp_path):
    root = tmp_path / Recipe(0, 1, 1).folder
    root.mkdir()
    (root / "mine.png").write_bytes(b"mine")
    with pytest.raises(UserError, match="is not a complete sample data set") as caught:
        SampleSource(root, seed=0, **TINY).prepare()
    assert "remove" not in str(caught.value) and names_in(root) == ["mine.png"] and names_in(tmp_path) == [root.name]


def test_the_standard_name_is_that_of_the_config(tmp_path):
    with initialize_config_dir(CONF, version_base="1.3"):
        cfg = compose("train", ["data=sample", "data.source.copies=7", f"paths.cache={tmp_path}"])
    assert cfg.data.root == str(tmp_path / Recipe(0, 30, 7).folder)

    with initialize_config_dir(CONF, version_base="1.3"):
        cfg = compose("train", ["data.source.shortcut=true", "data.source.label_errors=0.05", "paths.cache=here"])
    name = Recipe(0, 30, 4, shortcut=True, label_errors=0.05).folder
    assert cfg.data.root == f"here/{name}" and name == "sample-0-30x4-shortcut-errors0.05"


@pytest.fixture(scope="module")
def plain_and_shortcut(tmp_path_factory):
    """The same three photographs of each class without and with a shortcut."""
    cache = tmp_path_factory.mktemp("shortcut")
    for name, shortcut in (("plain", False), ("shortcut", True)):
        make_sample(cache / name, Recipe(photographs_per_kind=3, copies=1, shortcut=shortcut))
    return cache / "plain", cache / "shortcut"


def test_a_shortcut_is_in_the_boards_of_the_training_images_only(plain_and_shortcut):
    plain, shortcut = plain_and_shortcut
    catalog = SampleSource(shortcut, photographs_per_kind=3, copies=1, shortcut=True).read()
    assert {split: n for split, n in catalog.counts().items() if n} == {"train": 9, "val": 9, "test": 9}
    assert (photograph_split(catalog, seed=0) != catalog.splits).any()  # the set's own split is another, and is kept
    colors = {}
    for path, label, split in zip(
        catalog.paths.tolist(), catalog.labels.tolist(), catalog.splits.tolist(), strict=True
    ):
        mask = read(mask_of(shortcut / path))
        assert np.array_equal(mask, read(mask_of(plain / path)))  # masks are known, and the fish lies where it lay
        same = (shortcut / path).read_bytes() == (plain / path).read_bytes()
        assert same == (split != "train")
        image = read(shortcut / path)
        lit = (image.max(-1) > 3) & (mask == 0)
        colors.setdefault(split, {})[label] = np.median(image[lit], axis=0)

    def nearest_other(of):
        return min(np.abs(of[a] - of[b]).max() for a in of for b in of if a != b)

    assert nearest_other(colors["train"]) > 40 > nearest_other(colors["test"])


def test_the_split_of_a_shortcut_has_the_usual_shares():
    families = plan(Recipe(0, 30, 4, shortcut=True))
    counts = {split: sum(f.split == split for f in families) / 9 for split in ("train", "val", "test")}
    assert counts == {"train": 23, "val": 3, "test": 4}
    other = plan(Recipe(1, 30, 4, shortcut=True))
    assert [f.split for f in families] != [f.split for f in other]


def test_planted_label_errors_are_photographs_in_the_folder_of_another_class(tmp_path, small):
    make_sample(tmp_path / "errors", Recipe(**SMALL, label_errors=0.1))
    with (tmp_path / "errors" / "label_errors.csv").open(newline="") as stream:
        wrong = {row["photograph"]: (row["label"], row["true_label"]) for row in csv.DictReader(stream)}
    assert len(wrong) == 2 and all(given != true for given, true in wrong.values())
    catalog = SampleSource(tmp_path / "errors", **SMALL, label_errors=0.1).read()
    assert len(catalog) == 36 and len(set(catalog.photographs)) == 18
    assert not any(catalog.splits)
    for photograph, (given, true) in wrong.items():
        copies = catalog.paths[catalog.photographs == photograph]
        assert len(copies) == 2 and {path.split("/")[2] for path in copies} == {given}
        originals = {f.read_bytes() for f in copies_of(small) if f.parent.name == true}
        assert {(tmp_path / "errors" / path).read_bytes() for path in copies} <= originals
        assert all(mask_of(tmp_path / "errors" / path).is_file() for path in copies)
    rest = set(catalog.photographs) - set(wrong)
    for photograph, path in zip(catalog.photographs, catalog.paths, strict=True):
        if photograph in rest:  # as in the set without errors
            assert (tmp_path / "errors" / path).read_bytes() == (small / path).read_bytes()


def test_label_errors_are_spread_over_the_classes_and_keyed_by_the_seed():
    wrong = [f for f in plan(Recipe(0, 30, 4, label_errors=0.05)) if f.given != f.label]
    assert len(wrong) == round(0.05 * 270)
    of_class = np.bincount([f.label for f in wrong], minlength=9)
    assert of_class.min() == 1 and of_class.max() == 2
    assert wrong == [f for f in plan(Recipe(0, 30, 1, label_errors=0.05)) if f.given != f.label]
    assert wrong != [f for f in plan(Recipe(1, 30, 4, label_errors=0.05)) if f.given != f.label]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"shortcut": True, "photographs_per_kind": 2}, "at least 3, one for each split, not 2"),
        ({"label_errors": 0.6}, "expected a share from 0 to 0.5"),
        ({"label_errors": 0.1, "photographs_per_kind": 1}, "leaves no photograph in the folder of a class"),
    ],
)
def test_faults_that_a_set_is_too_small_for_are_refused(tmp_path, arguments, words):
    with pytest.raises(UserError, match=words):
        make_sample(tmp_path / "sample", Recipe(**arguments))


def test_of_processes_that_start_together_one_draws(tmp_path, one_class, capsys):
    root = tmp_path / Recipe(0, 1, 1).folder
    with ThreadPoolExecutor(3) as pool:  # each takes a lock of its own, as a process does
        list(pool.map(lambda _: SampleSource(root, seed=0, **TINY).prepare(), range(3)))
    assert capsys.readouterr().out.count("generating the sample data set: ") == 1
