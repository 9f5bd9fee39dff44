"""The files to predict: kept as bytes, named by a list, and put into batches of one size."""

import os
import tracemalloc

import albumentations as A
import numpy as np
import pytest

from fish_lightning.data.dataset import UNREADABLE
from fish_lightning.data.inputs import InputFiles, InputImages, read_inputs
from fish_lightning.data.listing import images_below
from fish_lightning.errors import UserError


def test_paths_are_kept_with_all_their_bytes():
    paths = ["a", "", "Dörsch/ü.png", os.fsdecode(b"\xff\xfe.png"), "s3://bucket/x y", "line\nbreak"]
    files = InputFiles(iter(paths))
    assert list(files) == paths and len(files) == 6
    assert files[-1] == paths[-1] and "Dörsch/ü.png" in files
    with pytest.raises(IndexError):
        files[6]
    assert files.digest() == InputFiles(paths).digest()
    others = (paths[:5], paths[::-1], ["aD", *paths[2:]], ["a", "", "Dörsch", *paths[3:]])
    assert len({files.digest(), *(InputFiles(other).digest() for other in others)}) == 5
    assert list(InputFiles([])) == []


def test_many_paths_take_little_more_than_their_characters():
    n = 20_000
    tracemalloc.start()
    files = InputFiles(f"{'folder/' * 8}{number:08}" for number in range(n))
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert files[n - 1].endswith("/00019999")
    assert kept < 75 * n and peak < 250 * n  # 64 characters each


def test_a_folder_of_many_files_is_listed_without_an_object_for_each_at_once(tmp_path):
    n, first = 3000, tmp_path / "0000.png"
    first.touch()
    for number in range(1, n):
        (tmp_path / f"{number:04}.png").hardlink_to(first)
    tracemalloc.start()
    assert sum(1 for _ in images_below(tmp_path)) == n
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 150 * n  # a DirEntry and its path take 300


@pytest.fixture
def folder(tmp_path, make_image, monkeypatch):
    """Images in a folder, and a working directory beside it."""
    for name in ("a.png", "deep/b.png", "c d.png"):
        make_image(tmp_path / "photos" / name, (9, 90, 9), 1)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "photos"


def test_a_text_file_lists_images_relative_to_its_folder(folder, tmp_path):
    other = tmp_path / "x.png"
    (folder / "list.txt").write_bytes(f"\ufeffdeep/b.png\r\n\r\n{other}\nc d.png\ns3://bucket/a.png\ngone.png".encode())
    listed = [str(folder / "deep" / "b.png"), str(other), str(folder / "c d.png"), "s3://bucket/a.png"]
    assert list(read_inputs("../photos/list.txt")) == [
        path.replace(str(tmp_path), "..") if path != str(other) else path for path in listed
    ] + ["../photos/gone.png"]
    assert list(read_inputs(str(folder / "list.txt"))) == [*listed, str(folder / "gone.png")]


def test_a_table_lists_images_in_its_column_path(folder):
    (folder / "table.CSV").write_text('label,path\nbass,a.png\neel,"c d.png"\n')
    assert list(read_inputs(str(folder / "table.CSV"))) == [str(folder / "a.png"), str(folder / "c d.png")]


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("list.txt", b"", "names no image"),
        ("list.txt", b"\n\r\n\n", "names no image"),
        ("list.txt", b"\x89PNG\r\n\x1a\n\0\0", "is not a list of paths"),
        ("table.csv", b"", "has no column 'path'"),
        ("table.csv", b"file,label\na.png,bass\n", "has no column 'path'"),
        ("table.csv", b"path\n", "names no image"),
        ("table.csv", b"path\n\0\n", "is not a list of paths|cannot be read"),
        ("table.csv", b'path\n"' + b"x" * 200_000, "cannot be read"),
    ],
)
def test_a_list_that_is_none_is_a_short_error(folder, name, content, why):
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=f"input: .*({why})") as error:
        read_inputs(str(folder / name))
    assert len(str(error.value).splitlines()) <= 2


def test_a_missing_list_matches_no_file(folder):
    with pytest.raises(UserError, match=r"input: absent.txt matches no file"):
        read_inputs("absent.txt")


def test_a_batch_has_a_group_for_each_size_of_image(folder, make_image):
    make_image(folder / "e.png", (9, 9, 90), 2, (40, 30))
    (folder / "f.png").write_bytes(b"")
    images = InputImages(read_inputs(str(folder)), A.Compose([A.ToTensorV2()]))
    names = [path.rpartition("/")[2] for path in images.files]
    assert names == ["a.png", "c d.png", "e.png", "f.png", "b.png"]
    groups = images[range(5)]
    assert [tuple(group["image"].shape) for group in groups] == [(3, 3, 24, 32), (1, 3, 40, 30), (1, 3, 32, 32)]
    assert [group["index"].tolist() for group in groups] == [[0, 1, 4], [2], [3]]
    assert [group["label"].tolist() for group in groups] == [[0, 0, 0], [0], [UNREADABLE]]
    assert groups[2]["error"] == [f"{folder / 'f.png'}: an empty file"] and groups[0]["error"] == ["", "", ""]
    resized = InputImages(images.files, A.Compose([A.Resize(8, 8), A.ToTensorV2()]))[range(5)]
    assert len(resized) == 1 and resized[0]["image"].dtype is groups[0]["image"].dtype
    assert np.array_equal(resized[0]["index"], range(5))
