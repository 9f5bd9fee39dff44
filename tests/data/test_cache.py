"""The cache of decoded images: the same pixels, decoded once, updated when files change, written atomically."""

import contextlib
import itertools
import multiprocessing
import pickle
import sys
import time
from collections import namedtuple

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
PARTS = split_pipelines(TRAIN, EVAL)


@pytest.fixture
def images(tmp_path, make_folder):
    return make_folder(tmp_path / "images", classes=2, per_class=5)


@pytest.fixture
def opened(images, tmp_path):
    """``opened()``: the cache of the current images."""

    def open_now(**settings):
        catalog = FolderSource(images).read()
        return open_cache(catalog, PARTS, tmp_path / "cache", **settings)

    return open_now


def pixel_files(tmp_path):
    return sorted((tmp_path / "cache").glob("pixels-*.npy"))


def resized(path):
    return A.Resize(20, 30)(image=decode(path))["image"]


def test_pipelines_are_split_after_their_common_resize():
    parts = split_pipelines(TRAIN, EVAL)
    assert [type(t).__name__ for t in parts.head] == ["Resize"]
    assert [type(t).__name__ for t in parts.train] == ["Rotate", "HorizontalFlip", "ToTensorV2"]
    assert [type(t).__name__ for t in parts.evaluate] == ["ToTensorV2"]
    assert (parts.height, parts.width) == (20, 30)


@pytest.mark.parametrize(
    "train",
    [
        [A.Rotate(p=1.0), A.Resize(20, 30)],  # begins at random
        [A.Resize(20, 31)],  # another size
        [A.Resize(20, 30, p=0.5)],  # not for all images
        [A.LongestMaxSize(30)],  # of different sizes
    ],
)
def test_pipelines_without_a_common_head_cannot_be_cached(train):
    assert split_pipelines(A.Compose(train), A.Compose([A.Resize(20, 30)])) is None


def test_crop_after_a_resize_of_the_longest_side_is_cached():
    start = [A.SmallestMaxSize(24), A.CenterCrop(20, 20), A.LongestMaxSize(40)]
    parts = split_pipelines(A.Compose([*start, A.HorizontalFlip()]), A.Compose(start))
    assert [type(t).__name__ for t in parts.head] == ["SmallestMaxSize", "CenterCrop"]
    assert (parts.height, parts.width) == (20, 20)


@pytest.mark.parametrize("in_ram", [False, True])
def test_pixels_equal_those_of_the_files(opened, images, in_ram):
    cache, catalog = opened(in_ram=in_ram), FolderSource(images).read()
    assert cache.pixels.shape == (10, 20, 30, 3)
    for index, path in enumerate(catalog.paths):
        np.testing.assert_array_equal(cache[index], resized(images / path))


def test_in_ram_writes_no_file(opened, tmp_path):
    opened(in_ram=True)
    assert not (tmp_path / "cache").exists()


def test_images_are_decoded_once(opened, tmp_path, monkeypatch):
    first = opened()
    monkeypatch.setattr(cache_module, "decode", lambda path: pytest.fail("decoded again"))
    np.testing.assert_array_equal(opened().pixels, first.pixels)
    assert len(pixel_files(tmp_path)) == 1


def test_only_changed_images_are_decoded_again(opened, images, tmp_path, make_image, monkeypatch, capsys):
    opened()
    make_image(images / "class a" / "000.png", (1, 2, 3), seed=99)  # changed
    make_image(images / "class a" / "zzz.png", (3, 2, 1), seed=98)  # added
    (images / "class b" / "001.png").unlink()  # removed
    decoded = []
    monkeypatch.setattr(cache_module, "decode", lambda path: decoded.append(path.name) or decode(path))
    capsys.readouterr()
    cache = opened()
    assert sorted(decoded) == ["000.png", "zzz.png"]
    assert "decoding 2 images to 20x30" in capsys.readouterr().out
    for index, path in enumerate(FolderSource(images).read().paths):
        np.testing.assert_array_equal(cache[index], resized(images / path))
    assert len(pixel_files(tmp_path)) == 2  # this file and the previous one
    make_image(images / "class a" / "zzzz.png", (3, 2, 1), seed=97)
    opened()
    assert len(pixel_files(tmp_path)) == 2


def test_each_size_has_its_own_file(opened, images, tmp_path):
    opened()
    other = A.Compose([A.Resize(10, 10), ToTensorV2()])
    open_cache(FolderSource(images).read(), split_pipelines(other, other), tmp_path / "cache")
    assert len(pixel_files(tmp_path)) == 2


def test_corrupt_file_is_replaced(opened, tmp_path):
    before = np.array(opened().pixels)
    (file,) = pixel_files(tmp_path)
    file.write_bytes(file.read_bytes()[:1000])
    np.testing.assert_array_equal(opened().pixels, before)


def test_unreadable_file_is_reported_from_the_cache(opened, images, monkeypatch):
    (images / "class a" / "002.png").write_bytes(b"no image")
    opened()
    monkeypatch.setattr(cache_module, "decode", lambda path: pytest.fail("decoded again"))
    cache = opened()
    with pytest.raises(UnreadableImage, match=r"002\.png: not an image"):
        cache[2]
    assert cache.errors.keys() == {2}
    assert not cache.pixels[2].any()


def test_pickle_contains_the_file_name_and_not_the_pixels(opened):
    cache = opened()
    assert cache.pixels.nbytes == 18_000
    copy = pickle.dumps(cache)
    assert len(copy) < 1000
    np.testing.assert_array_equal(pickle.loads(copy)[3], cache[3])


def test_image_is_a_writable_copy(opened):
    cache = opened()
    before = cache[0]
    cache[0][:] = 7
    np.testing.assert_array_equal(cache[0], before)


def test_lack_of_disk_space_is_reported_before_decoding(opened, monkeypatch, tmp_path):
    monkeypatch.setattr(cache_module.shutil, "disk_usage", lambda _: namedtuple("usage", "free")(10))
    with pytest.raises(UserError, match=r"take 18 KB, and .* has 10 bytes free\n.*data\.cache=off"):
        opened()
    assert pixel_files(tmp_path) == []


@pytest.fixture
def start(images, tmp_path):
    """``start(pause=0, limit=None)`` opens the cache in a process of its own: ``.output()`` waits and returns its text.

    It takes ``pause`` seconds to decode an image, and writes no file of more than ``limit`` bytes.
    """

    class Process(multiprocessing.get_context("fork").Process):  # a new interpreter takes seconds for its imports
        def __init__(self, pause=0.0, limit=None):
            super().__init__(daemon=True)
            self.pause, self.limit, self.file = pause, limit, tmp_path / f"output {next(numbers)}"

        def run(self):
            if self.limit:
                import resource

                resource.setrlimit(resource.RLIMIT_FSIZE, (self.limit, self.limit))
            cache_module.decode = lambda path: time.sleep(self.pause) or decode(path)
            with self.file.open("w") as stream, contextlib.redirect_stdout(stream):
                try:
                    cache = open_cache(FolderSource(images).read(), PARTS, tmp_path / "cache")
                except UserError as error:
                    print(error)
                    sys.exit(1)
                print(int(cache.pixels.sum()))

        def output(self):
            self.join(60)
            return self.file.read_text()

    numbers = itertools.count()

    def begin(**settings):
        process = Process(**settings)
        process.start()
        return process

    return begin


def test_one_of_two_concurrent_processes_decodes(start, tmp_path):
    both = [start(pause=0.05) for _ in range(2)]
    outputs = [process.output() for process in both]
    assert [process.exitcode for process in both] == [0, 0], outputs
    assert sum("decoding 10 images" in output for output in outputs) == 1
    assert len({output.splitlines()[-1] for output in outputs}) == 1
    assert len(pixel_files(tmp_path)) == 1


def test_process_killed_while_writing_leaves_nothing_that_is_used(start, tmp_path):
    folder = tmp_path / "cache"
    killed = start(pause=0.3)
    deadline = time.monotonic() + 60
    while not list(folder.glob(".*pixels-*.npy")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    killed.kill()
    killed.output()
    assert pixel_files(tmp_path) == []
    assert "decoding 10 images" in start().output()  # all of them, without waiting for the lock of the killed process
    assert [file.name for file in folder.iterdir() if file.name.startswith(".")] == []
    assert len(pixel_files(tmp_path)) == 1


def test_full_disk_is_a_short_error_and_leaves_no_file(start, tmp_path):
    process = start(limit=9_000)  # of 18 kB
    first, *rest = process.output().splitlines()[-2:]
    assert process.exitcode == 1
    assert first.startswith("data.cache: the decoded images cannot be written to ")
    assert len(rest) == 1 and "data.cache=off" in rest[0]
    assert [file.suffix for file in (tmp_path / "cache").iterdir()] == [".lock"]


def test_deleted_file_does_not_stop_the_workers_of_a_run(tmp_path, images, make_data):
    data = make_data(images, cache="on", cache_dir=tmp_path / "cache", num_workers=1)
    (file,) = pixel_files(tmp_path)
    file.unlink()
    assert sum(len(batch["label"]) for batch in data.test_dataloader()) == len(data.catalog.indices("test"))


def test_two_tables_of_one_folder_alternate_without_decoding_again(images, tmp_path, monkeypatch):
    catalog = FolderSource(images).read()
    rows = [
        (str(path), catalog.classes[label], "", "") for path, label in zip(catalog.paths, catalog.labels, strict=True)
    ]
    tables = (catalog, make_catalog(images, rows[::2]))
    for table in tables:
        open_cache(table, PARTS, tmp_path / "cache")
    before = pixel_files(tmp_path)
    monkeypatch.setattr(cache_module, "decode", lambda path: pytest.fail("decoded again"))
    for table in tables:
        open_cache(table, PARTS, tmp_path / "cache")
    assert pixel_files(tmp_path) == before and len(before) == 2


@pytest.mark.parametrize("times", [1, 99])
def test_a_file_deleted_as_soon_as_it_is_written_is_written_again_or_said(opened, tmp_path, monkeypatch, times):
    written, write = [], cache_module._write

    def write_and_lose(*arguments):
        write(*arguments)
        written.append(1)
        if len(written) <= times:
            pixel_files(tmp_path)[0].unlink()

    monkeypatch.setattr(cache_module, "_write", write_and_lose)
    if times == 1:
        assert len(opened().pixels) == 10
    else:
        with pytest.raises(
            UserError, match=r"pixels-.*\.npy was deleted or corrupted right after it was written, 2 times"
        ):
            opened()
    assert len(written) == 2
