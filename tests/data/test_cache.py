"""Decoded images kept in a file: the same pixels, made once, mended where files change, whole or not at all."""

import os
import pickle
import signal
import subprocess
import sys
import time

import albumentations as A
import numpy as np
import pytest
from albumentations.pytorch import ToTensorV2

from fish_lightning.data import cache as cache_module
from fish_lightning.data.cache import open_cache, split_pipelines
from fish_lightning.data.catalog import make_catalog
from fish_lightning.data.decoding import UnreadableImage, decode
from fish_lightning.data.sources import FolderSource
from fish_lightning.errors import UserError

TRAIN = A.Compose([A.Resize(20, 30), A.Rotate((-35, 35), p=1.0), A.HorizontalFlip(p=0.5), ToTensorV2()])
EVAL = A.Compose([A.Resize(20, 30), ToTensorV2()])


@pytest.fixture
def images(tmp_path, make_folder):
    return make_folder(tmp_path / "images", classes=2, per_class=5)


@pytest.fixture
def opened(images, tmp_path):
    """``opened()``: the cache of the images as they are now."""

    def open_now(**settings):
        catalog = FolderSource(images).read()
        return open_cache(catalog, split_pipelines(TRAIN, EVAL), tmp_path / "cache", workers=2, **settings)

    return open_now


def pixel_files(tmp_path):
    return sorted((tmp_path / "cache").glob("pixels-*.npy"))


def resized(path):
    return A.Resize(20, 30)(image=decode(path))["image"]


def test_pipelines_are_split_after_the_resize_they_share():
    parts = split_pipelines(TRAIN, EVAL)
    assert [type(t).__name__ for t in parts.head] == ["Resize"]
    assert [type(t).__name__ for t in parts.train] == ["Rotate", "HorizontalFlip", "ToTensorV2"]
    assert [type(t).__name__ for t in parts.evaluate] == ["ToTensorV2"]
    assert (parts.height, parts.width) == (20, 30)


@pytest.mark.parametrize(
    "train",
    [
        [A.Rotate(p=1.0), A.Resize(20, 30)],  # chance comes first
        [A.Resize(20, 31)],  # another size
        [A.Resize(20, 30, p=0.5)],  # not always
        [A.LongestMaxSize(30)],  # sizes differ
    ],
)
def test_there_is_nothing_to_cache_where_pipelines_do_not_begin_alike(train):
    assert split_pipelines(A.Compose(train), A.Compose([A.Resize(20, 30)])) is None


def test_a_crop_after_a_resize_of_the_longest_side_is_cached():
    start = [A.SmallestMaxSize(24), A.CenterCrop(20, 20), A.LongestMaxSize(40)]
    parts = split_pipelines(A.Compose([*start, A.HorizontalFlip()]), A.Compose(start))
    assert [type(t).__name__ for t in parts.head] == ["SmallestMaxSize", "CenterCrop"]
    assert (parts.height, parts.width) == (20, 20)


@pytest.mark.parametrize("in_ram", [False, True])
def test_the_pixels_are_those_of_the_files(opened, images, in_ram):
    cache, catalog = opened(in_ram=in_ram), FolderSource(images).read()
    assert cache.pixels.shape == (10, 20, 30, 3)
    for row, path in enumerate(catalog.paths):
        np.testing.assert_array_equal(cache[row], resized(images / path))


def test_in_ram_writes_nothing(opened, tmp_path):
    opened(in_ram=True)
    assert not (tmp_path / "cache").exists()


def test_it_is_made_once(opened, tmp_path, monkeypatch):
    first = opened()
    monkeypatch.setattr(cache_module, "decode", lambda path: pytest.fail("decoded again"))
    np.testing.assert_array_equal(opened().pixels, first.pixels)
    assert len(pixel_files(tmp_path)) == 1


def test_only_what_changed_is_decoded_again(opened, images, tmp_path, make_image, monkeypatch, capsys):
    opened()
    make_image(images / "kind a" / "000.png", (1, 2, 3), seed=99)  # changed
    make_image(images / "kind a" / "zzz.png", (3, 2, 1), seed=98)  # added
    (images / "kind b" / "001.png").unlink()  # removed
    decoded = []
    monkeypatch.setattr(cache_module, "decode", lambda path: decoded.append(path.name) or decode(path))
    capsys.readouterr()
    cache = opened()
    assert sorted(decoded) == ["000.png", "zzz.png"]
    assert "decoding 2 images to 20x30" in capsys.readouterr().out
    for row, path in enumerate(FolderSource(images).read().paths):
        np.testing.assert_array_equal(cache[row], resized(images / path))
    assert len(pixel_files(tmp_path)) == 2  # the former one, too, but none before it
    make_image(images / "kind a" / "zzzz.png", (3, 2, 1), seed=97)
    opened()
    assert len(pixel_files(tmp_path)) == 2


def test_another_resize_is_another_file(opened, images, tmp_path):
    opened()
    other = A.Compose([A.Resize(10, 10), ToTensorV2()])
    open_cache(FolderSource(images).read(), split_pipelines(other, other), tmp_path / "cache", workers=1)
    assert len(pixel_files(tmp_path)) == 2


def test_a_damaged_file_is_made_anew(opened, tmp_path):
    before = np.array(opened().pixels)
    (file,) = pixel_files(tmp_path)
    file.write_bytes(file.read_bytes()[:1000])
    np.testing.assert_array_equal(opened().pixels, before)


def test_an_unreadable_file_is_remembered_and_named(opened, images, monkeypatch):
    (images / "kind a" / "002.png").write_bytes(b"no image")
    opened()
    monkeypatch.setattr(cache_module, "decode", lambda path: pytest.fail("decoded again"))
    cache = opened()
    with pytest.raises(UnreadableImage, match=r"002\.png: not an image"):
        cache[2]
    assert cache.errors.keys() == {2}
    assert not cache.pixels[2].any()


def test_a_pickle_holds_the_name_of_the_file_not_its_pixels(opened):
    cache = opened()
    assert cache.pixels.nbytes == 18_000
    copy = pickle.dumps(cache)
    assert len(copy) < 1000
    np.testing.assert_array_equal(pickle.loads(copy)[3], cache[3])


def test_an_image_may_be_written_to_and_the_file_stays(opened):
    cache = opened()
    before = cache[0]
    cache[0][:] = 7
    np.testing.assert_array_equal(cache[0], before)


def test_too_little_disk_is_said_before(opened, monkeypatch, tmp_path):
    monkeypatch.setattr(cache_module.shutil, "disk_usage", lambda path: os.terminal_size((0, 0)) and Usage())
    with pytest.raises(UserError, match=r"take 0 MB, and .* has 0\.0 GB free\n.*data\.cache=off"):
        opened()
    assert pixel_files(tmp_path) == []


class Usage:
    free = 10


PROGRAM = """
import sys, time
from pathlib import Path
import albumentations as A
from albumentations.pytorch import ToTensorV2
from fish_lightning.data import cache
from fish_lightning.data.sources import FolderSource
from fish_lightning.errors import UserError
images, folder, pause, limit = sys.argv[1:]
if int(limit):
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
fast = cache.decode
def decode(path):
    time.sleep(float(pause))
    return fast(path)
cache.decode = decode
both = A.Compose([A.Resize(20, 30), ToTensorV2()])
print("ready", flush=True)
try:
    found = cache.open_cache(FolderSource(images).read(), cache.split_pipelines(both, both), Path(folder), 1)
except UserError as error:
    sys.exit(str(error))
print(int(found.pixels.sum()))
"""


def start(images, folder, pause=0.0, limit=0):
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, images, folder, str(pause), str(limit)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_of_two_that_start_at_once_one_decodes(images, tmp_path):
    both = [start(images, tmp_path / "cache", pause=0.2) for _ in range(2)]
    outputs = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert sum("decoding 10 images" in out for out, _ in outputs) == 1
    assert len({out.splitlines()[-1] for out, _ in outputs}) == 1
    assert len(pixel_files(tmp_path)) == 1


def test_killed_while_it_is_made_it_leaves_nothing_that_counts(images, tmp_path):
    folder = tmp_path / "cache"
    killed = start(images, folder, pause=0.3)
    deadline = time.monotonic() + 60
    while not list(folder.glob(".*pixels-*.npy")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert pixel_files(tmp_path) == []
    out, _ = start(images, folder).communicate(timeout=60)
    assert "decoding 10 images" in out  # all of them, and not waiting for the lock of the dead
    assert [file.name for file in folder.iterdir() if file.name.startswith(".")] == []
    assert len(pixel_files(tmp_path)) == 1


def test_a_disk_that_fills_up_is_one_short_error_and_leaves_nothing(images, tmp_path):
    process = start(images, tmp_path / "cache", limit=9_000)  # of the 18 kB
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "data.cache: the decoded images cannot be kept in" in err
    assert "data.cache=off" in err
    assert len(err.strip().splitlines()) == 2
    assert [file.suffix for file in (tmp_path / "cache").iterdir()] == [".lock"]


def test_a_file_deleted_under_a_run_does_not_stop_its_workers(tmp_path, images, make_data):
    data = make_data(images, cache="on", cache_dir=tmp_path / "cache", num_workers=1)
    (file,) = pixel_files(tmp_path)
    file.unlink()
    assert sum(len(batch["label"]) for batch in data.test_dataloader()) == len(data.catalog.indices("test"))


def test_two_tables_of_one_folder_take_turns_without_decoding_again(images, tmp_path, monkeypatch):
    catalog = FolderSource(images).read()
    rows = [
        (str(path), catalog.classes[label], "", "") for path, label in zip(catalog.paths, catalog.labels, strict=True)
    ]
    tables, parts = (catalog, make_catalog(images, rows[::2])), split_pipelines(TRAIN, EVAL)
    for table in tables:
        open_cache(table, parts, tmp_path / "cache", workers=1)
    before = pixel_files(tmp_path)
    monkeypatch.setattr(cache_module, "decode", lambda path: pytest.fail("decoded again"))
    for table in tables:
        open_cache(table, parts, tmp_path / "cache", workers=1)
    assert pixel_files(tmp_path) == before and len(before) == 2
