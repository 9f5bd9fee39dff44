"""Copies of one photograph end up in one group, and nothing else does."""

import itertools
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest

from fish_lightning import hardware
from fish_lightning.data.near_duplicates import grouping, similarity
from fish_lightning.data.near_duplicates.search import find_photographs, label_errors, photograph_names
from fish_lightning.data.sample.generate import make_sample
from fish_lightning.data.sample.recipe import Recipe

HEIGHT, WIDTH = 180, 240


def draw_texture(rng, finest=1):
    """(HEIGHT, WIDTH, 3) clouds from coarse to fine, mean 110."""
    sizes = [s for s in (64, 24, 8, 3, 1) if s >= finest]
    layers = [
        cv2.resize(
            rng.normal(0, 1, (HEIGHT // s + 1, WIDTH // s + 1, 3)), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC
        )
        for s in sizes
    ]
    return 110 + 18 * sum(layers)


def draw_photograph(seed, board=None, stamp="05/04/2019"):
    """A textured fish on a scratched board, with a date stamp."""
    rng = np.random.default_rng(seed)
    picture = draw_texture(np.random.default_rng(1000 + seed) if board is None else board, finest=3)
    middle = (int(rng.integers(95, 145)), int(rng.integers(75, 105)))
    body = np.zeros((HEIGHT, WIDTH), np.uint8)
    cv2.ellipse(body, middle, (70, 24), int(rng.integers(0, 180)), 0, 360, 1, -1)
    picture = np.where(body[..., None] > 0, draw_texture(rng) + rng.uniform(10, 40, 3), picture)
    picture = np.ascontiguousarray(picture.clip(20, 230).astype(np.uint8))
    cv2.putText(picture, stamp, (WIDTH - 95, HEIGHT - 8), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (250, 250, 60), 1)
    return picture


def rotated(picture, degrees):
    """Rotate on the same canvas, with black corners."""
    height, width = picture.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1)
    return cv2.warpAffine(picture, matrix, (width, height))


def resized(picture, width, height):
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA if width < WIDTH else cv2.INTER_CUBIC)


def write(path, picture, quality=92):
    path.parent.mkdir(parents=True, exist_ok=True)
    settings = [cv2.IMWRITE_JPEG_QUALITY, quality] if path.suffix == ".jpg" else []
    assert cv2.imwrite(str(path), picture[..., ::-1], settings)
    return path


def precision_and_recall(groups, truth):
    pairs = np.triu_indices(len(groups), 1)
    same = (groups[:, None] == groups[None])[pairs]
    true = (truth[:, None] == truth[None])[pairs]
    return (same & true).sum() / same.sum(), (same & true).sum() / true.sum()


COPIES = {
    "exact": lambda p: p,
    "left to right": lambda p: p[:, ::-1],
    "upside down": lambda p: p[::-1],
    "quarter turn": np.rot90,
    "17 degrees": lambda p: rotated(p, 17),
    "mirrored, 203 degrees": lambda p: rotated(p[:, ::-1], 203),
    "half the size": lambda p: resized(p, WIDTH // 2, HEIGHT // 2),
    "twice the size": lambda p: resized(p, 2 * WIDTH, 2 * HEIGHT),
    "squashed": lambda p: resized(p, 200, 200),
    "rotated, then squashed": lambda p: resized(rotated(p, 70), 200, 200),
    "cropped": lambda p: p[15:-15, 20:-20],
    "brighter": lambda p: cv2.convertScaleAbs(p, alpha=1.15),
    "darker": lambda p: cv2.convertScaleAbs(p, alpha=0.85),
    "rotated, half the size, brighter": lambda p: cv2.convertScaleAbs(resized(rotated(p, 130), 120, 90), alpha=1.1),
}


@pytest.mark.parametrize("change", COPIES)
def test_a_copy_is_found(tmp_path, change):
    files = []
    for seed in range(4):
        picture = draw_photograph(seed)
        files.append(write(tmp_path / f"{seed}.png", picture))
        files.append(write(tmp_path / f"{seed}_copy.png", COPIES[change](picture)))
    assert find_photographs(files, None).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize("quality", [90, 50, 20])
def test_a_re_encoded_copy_is_found(tmp_path, quality):
    files = []
    for seed in range(4):
        files.append(write(tmp_path / f"{seed}.png", draw_photograph(seed)))
        files.append(write(tmp_path / f"{seed}.jpg", draw_photograph(seed), quality))
    assert find_photographs(files, None).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_many_copies_of_several_photographs_are_grouped(tmp_path):
    rng, files, truth = np.random.default_rng(0), [], []
    for seed, (name, copy) in itertools.product(range(4), enumerate(COPIES.values())):
        picture = copy(draw_photograph(seed, board=np.random.default_rng(seed % 2)))
        files.append(write(tmp_path / f"{seed}_{name}.jpg", picture, int(rng.integers(70, 95))))
        truth.append(seed)
    assert precision_and_recall(find_photographs(files, None), np.array(truth)) == (1, 1)


@pytest.mark.parametrize("shape", [(28, 28), (120, 160)])
def test_only_flips_and_quarter_turns_of_images_without_texture_are_grouped(tmp_path, shape):
    files, truth = [], []
    for number in range(5):
        noise = np.random.default_rng(number).normal(size=(*shape, 3))
        smooth = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), shape[0] / 8), None, 20, 235, cv2.NORM_MINMAX)
        picture = smooth.astype(np.uint8)
        for number_of_copy, copy in enumerate((picture, picture[:, ::-1], picture[::-1], np.rot90(picture))):
            files.append(write(tmp_path / f"{number}-{number_of_copy}.png", np.ascontiguousarray(copy)))
            truth.append(number)
    assert precision_and_recall(find_photographs(files, None), np.array(truth)) == (1.0, 1.0)


def test_a_shared_board_and_stamp_do_not_make_a_copy(tmp_path):
    files = [
        write(tmp_path / f"{seed}_{degrees}.png", rotated(draw_photograph(seed, np.random.default_rng(7)), degrees))
        for seed in range(8)
        for degrees in (0, 40)
    ]
    assert find_photographs(files, None).tolist() == np.repeat(np.arange(8), 2).tolist()


def test_shots_of_an_unchanged_scene_stay_together(tmp_path):
    """They differ in the position of the stamp, as bursts of the archive's shrimps do."""
    plain, moved = draw_photograph(3, stamp=""), draw_photograph(3, stamp="")
    cv2.putText(plain, "19", (200, 160), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (250, 250, 60), 2)
    cv2.putText(moved, "19", (196, 158), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (250, 250, 60), 2)
    files = [
        write(tmp_path / "0.png", plain),
        write(tmp_path / "1.png", moved),
        write(tmp_path / "2.png", rotated(moved, 9)),
    ]
    assert find_photographs(files, None).tolist() == [0, 0, 0]


def test_frames_of_a_camera_on_a_tripod_do_not_become_one_group(tmp_path):
    """A small object moves over a still background: at most ``SHOTS`` frames stay together."""
    files = []
    for number in range(9):
        frame = draw_photograph(5)
        cv2.circle(frame, (25 + 20 * number, 30), 9, (240, 240, 240), -1)
        cv2.circle(frame, (25 + 20 * number, 30), 5, (20, 20, 20), -1)
        files.append(write(tmp_path / f"{number}.png", frame))
    groups = find_photographs(files, None)
    assert np.bincount(groups).max() <= grouping.SHOTS


def test_copies_with_different_labels_are_reported(tmp_path):
    pictures = [draw_photograph(seed) for seed in range(3)]
    files = [write(tmp_path / "Trout" / f"{seed}.png", pictures[seed]) for seed in range(3)]
    files.append(write(tmp_path / "Shrimp" / "0.png", rotated(pictures[1], 30)))
    groups = find_photographs(files, None)
    (indices,) = label_errors(np.array([1, 1, 1, 0]), groups)
    assert indices.tolist() == [1, 3]
    assert label_errors(np.array([1, 1, 1, 1]), groups) == []


def test_an_unreadable_file_is_a_photograph_of_its_own(tmp_path):
    files = [write(tmp_path / f"{number}.png", draw_photograph(0)) for number in range(2)]
    for name, content in (("empty.png", b""), ("text.png", b"no image"), ("text2.png", b"no image")):
        (tmp_path / name).write_bytes(content)
        files.append(tmp_path / name)
    files.append(tmp_path / "missing.png")
    assert find_photographs(files, None).tolist() == [0, 0, 1, 2, 3, 4]


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 2), (5, 5)])
def test_tiny_and_blank_images_are_no_copies_of_each_other(tmp_path, shape):
    tiny = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    blank = [np.full((40, 50, 3), value, np.uint8) for value in ((0, 255) if shape == (5, 5) else (0,))]
    files = [write(tmp_path / f"{number}.png", picture) for number, picture in enumerate([tiny, tiny, *blank])]
    assert find_photographs(files, None).tolist() == [0, 0, 1, 2][: len(files)]


@pytest.mark.parametrize("count", [0, 1])
def test_no_images_or_a_single_one_give_as_many_photographs(tmp_path, count):
    files = [write(tmp_path / "0.png", draw_photograph(0))][:count]
    assert find_photographs(files, None).tolist() == [0] * count


def test_neither_the_order_of_files_nor_the_cores_change_the_groups(tmp_path, monkeypatch):
    files = [
        write(tmp_path / f"{seed}_{number}.jpg", copy(draw_photograph(seed, np.random.default_rng(0))))
        for seed in range(3)
        for number, copy in enumerate(list(COPIES.values())[::3])
    ]
    monkeypatch.setattr(hardware, "cores", lambda: 1)
    groups = find_photographs(files, None)
    monkeypatch.setattr(hardware, "cores", lambda: 3)
    order = np.random.default_rng(1).permutation(len(files))
    shuffled = find_photographs([files[i] for i in order], None)
    names = photograph_names([f.name for f in files], groups)
    assert photograph_names([files[i].name for i in order], shuffled).tolist() == names[order].tolist()
    assert shuffled[0] == 0  # numbered by first appearance


def test_a_photograph_is_named_by_its_first_path():
    names = photograph_names(["b/2.png", "a/9.png", "b/1.png"], np.array([0, 1, 0]))
    assert names.tolist() == ["b/1.png", "a/9.png", "b/1.png"]


class TestCache:
    @pytest.fixture
    def files(self, tmp_path):
        return [write(tmp_path / "images" / f"{seed}.png", draw_photograph(seed)) for seed in range(3)]

    @pytest.fixture
    def extracted(self, monkeypatch):
        """The files whose features are extracted."""
        files, extract = [], similarity.Features.extract

        def record(features, i, file):
            files.append(file)
            extract(features, i, file)

        monkeypatch.setattr(similarity.Features, "extract", record)
        return files

    def test_unchanged_files_are_not_searched_again_in_any_order(self, tmp_path, files, extracted):
        cache = tmp_path / "cache" / "photographs.npz"
        assert find_photographs(files, cache).tolist() == [0, 1, 2]
        extracted.clear()
        assert find_photographs(files[::-1], cache).tolist() == [0, 1, 2]
        assert extracted == []
        names = {file.name for file in cache.parent.iterdir()}
        assert names == {"photographs.npz", "photographs.lock"}  # no temporary file is left

    def test_of_processes_that_start_together_one_searches(self, tmp_path, files, extracted, capsys):
        cache = tmp_path / "photographs.npz"
        with ThreadPoolExecutor(4) as pool:  # each takes a lock of its own, as a process does
            found = list(pool.map(lambda _: find_photographs(files, cache).tolist(), range(4)))
        assert found == [[0, 1, 2]] * 4 and len(extracted) == 3

    def test_a_changed_file_changes_the_result(self, tmp_path, files):
        cache = tmp_path / "photographs.npz"
        find_photographs(files, cache)
        write(files[2], rotated(draw_photograph(0), 33))
        assert find_photographs(files, cache).tolist() == [0, 1, 0]

    def test_files_are_searched_again_after_a_change_of_modification_time(self, tmp_path, files, extracted):
        cache = tmp_path / "photographs.npz"
        find_photographs(files, cache)
        extracted.clear()
        os.utime(files[0], ns=(1, 1))
        find_photographs(files, cache)
        assert len(extracted) == 3

    def test_a_copy_added_later_is_found(self, tmp_path, files):
        cache = tmp_path / "photographs.npz"
        find_photographs(files, cache)
        added = write(tmp_path / "images" / "9.png", draw_photograph(1)[:, ::-1])
        assert find_photographs([*files, added], cache).tolist() == [0, 1, 2, 1]

    @pytest.mark.parametrize("content", [b"", b"PK\x03\x04 damaged", b"text"])
    def test_a_corrupt_cache_is_replaced(self, tmp_path, files, content):
        cache = tmp_path / "photographs.npz"
        cache.write_bytes(content)
        assert find_photographs(files, cache).tolist() == [0, 1, 2]
        with np.load(cache) as kept:
            assert kept["groups"].shape == (3,)


def test_the_search_does_not_import_torch():
    code = "import sys, fish_lightning.data.near_duplicates.search; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_number_of_opencv_threads_is_restored(tmp_path):
    before = cv2.getNumThreads()
    find_photographs([write(tmp_path / "0.png", draw_photograph(0))], None)
    assert cv2.getNumThreads() == before


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_the_photographs_of_the_sample_data_are_found(tmp_path, seed):
    make_sample(tmp_path / "sample", Recipe(seed=seed, photographs_per_kind=2, copies=3))
    rows = np.loadtxt(tmp_path / "sample" / "photographs.csv", str, delimiter=",", skiprows=1)
    _, truth = np.unique(rows[:, 1], return_inverse=True)
    groups = find_photographs([tmp_path / "sample" / path for path in rows[:, 0]], None)
    precision, recall = precision_and_recall(groups, truth)
    assert precision >= 0.999
    assert recall >= 0.999
