"""``prepare``: as a program for what it prints and how it ends, in this process for the rest."""

import os
import re
import sys
import zipfile
from types import SimpleNamespace

import pytest
from helpers import message_of
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from fish_lightning.cli import CONF
from fish_lightning.data.sources import ArchiveSource
from fish_lightning.prepare import prepare

HANDLE = "crowww/a-large-scale-fish-dataset"


@pytest.fixture
def cache(tmp_path):
    return {"FISH_LIGHTNING_CACHE": str(tmp_path / "cache")}


@pytest.fixture
def composed(tmp_path, monkeypatch):
    """``composed(program, *overrides)``: its config; the test runs in ``tmp_path``."""
    monkeypatch.chdir(tmp_path)

    def make(program, *overrides):
        paths = (f"paths.cache={tmp_path / 'cache'}", f"paths.output={tmp_path / 'out'}")
        with initialize_config_dir(CONF, version_base="1.3"):
            return compose(program, [*overrides, *paths])

    return make


def report_of(cwd):
    (folder,) = (cwd / "logs" / "prepare" / "runs").iterdir()
    return (folder / "data_report.html").read_text(encoding="utf-8")


def test_a_folder_is_checked_and_reported(tmp_path, run, make_folder, cache):
    root = make_folder(tmp_path / "my photos, ü", 2, 4)
    done = run("prepare", "data=folder", f"data.root='{root}'", cwd=tmp_path, env=cache)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^class a +4 ", done.stdout, re.MULTILINE) and "no problems found" in done.stdout
    assert f"8 images of 2 classes in {root}" in done.stdout
    assert "my photos, ü: 8 images of 2 classes" in report_of(tmp_path)
    assert list((tmp_path / "cache").glob("photographs-*.npz"))  # training will not search again


def test_what_would_stop_a_training_is_an_error_after_the_report(tmp_path, run, make_folder, cache):
    root = make_folder(tmp_path / "data", 2, 4)
    (root / "class a" / "9.png").write_bytes(b"")
    (root / "class c").mkdir()
    done = run("prepare", "data=folder", f"data.root={root}", cwd=tmp_path, env=cache)
    assert done.returncode == 1, done.stdout + done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 2 and "data_report.html" in lines[1], done.stderr
    assert lines[0].startswith(
        "error: training would fail: 1 unreadable image, class folders without an image (class c)"
    )
    assert "class a/9.png: an empty file" in report_of(tmp_path)


def test_a_zip_file_is_unpacked_once(tmp_path, composed, make_archive, capsys):
    root = make_archive(tmp_path / "original")
    with zipfile.ZipFile(tmp_path / "a=b.zip", "w") as opened:
        for file in sorted(root.rglob("*.*")):
            opened.write(file, file.relative_to(root))
    overrides = ("data=fish", "data.root=here/fish", "data.archive='a=b.zip'", "data.find_copies=false")
    prepare(composed("prepare", *overrides))
    assert "unpacked 14 files into here/fish" in capsys.readouterr().out
    assert ArchiveSource(tmp_path / "here" / "fish").read().paths.tolist() == ArchiveSource(root).read().paths.tolist()
    prepare(composed("prepare", *overrides))
    assert "unpacked 0 files into here/fish" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data=folder", "data.root=to", "data.archive=evil.zip"], "'../evil.png', which would be written outside"),
        (["data=folder", "data.root=to", "data.archive=half.zip"], "half.zip is not a zip file, or is incomplete"),
        (["data=folder", "data.root=to", "data.archive=no.zip"], "data.archive: no file no.zip"),
        (["data=folder", "data.root=to", "data.archive=big.zip", "data.archive_limit=0.001"], "the limit of 1 MB"),
        (["data=folder", "data.archive=big.zip"], "data.root: no folder of images was specified"),
        (["data=sample", "data.archive=big.zip"], "data.archive requires data=fish"),
        (["data=folder", "data.root=nowhere"], "data.root: nowhere does not exist"),
        (["data=folder", "data.root=bare"], "no images in bare"),
        (["data=folder", "data.catalog=table.csv"], "gone.png"),
        (["data=checkpoint"], "there is nothing to prepare"),
    ],
)
def test_what_cannot_be_prepared_is_reported_briefly(tmp_path, composed, overrides, words):
    for name, member in (("evil.zip", "../evil.png"), ("big.zip", "a/1.png")):
        with zipfile.ZipFile(tmp_path / name, "w") as opened:
            opened.writestr(member, os.urandom(2_000_000))
    (tmp_path / "half.zip").write_bytes((tmp_path / "big.zip").read_bytes()[:1_000_000])
    (tmp_path / "bare").mkdir()
    (tmp_path / "table.csv").write_text("path,label\ngone.png,x\n")
    assert words in message_of(prepare, composed("prepare", *overrides))
    assert not (tmp_path.parent / "evil.png").exists() and not (tmp_path / "evil.png").exists()


@pytest.fixture
def downloads(monkeypatch):
    """``downloads(folder)``: kagglehub "downloads" to this folder; the handles that it is called with."""

    def stand_in(folder):
        handles = []
        kagglehub = SimpleNamespace(dataset_download=lambda handle: handles.append(handle) or str(folder))
        monkeypatch.setitem(sys.modules, "kagglehub", kagglehub)
        return handles

    return stand_in


def prepare_training(cfg):
    instantiate(cfg.data).prepare_data()


@pytest.mark.parametrize(("program", "task"), [("prepare", prepare), ("train", prepare_training)])
def test_the_archive_is_downloaded_if_its_folder_does_not_exist(
    tmp_path, composed, make_archive, downloads, capsys, program, task
):
    download = make_archive(tmp_path / "kaggle" / "versions" / "4")
    handles = downloads(download)
    cfg = composed(program, "data=fish", "data.root=data/fish", "data.find_copies=false")
    for _ in range(2):  # the second time it exists
        task(cfg)
        assert handles == [HANDLE]
    assert f"data.root: data/fish does not exist: downloading {HANDLE} from Kaggle" in capsys.readouterr().out
    assert (tmp_path / "data" / "fish").resolve() == download.resolve()
    assert len(ArchiveSource(tmp_path / "data" / "fish").read()) == 6


def test_a_failed_download_explains_tokens_and_the_manual_way(tmp_path, composed, monkeypatch):
    def refuse(handle):
        raise RuntimeError("401 Client Error: you must authenticate\n  more")

    monkeypatch.setitem(sys.modules, "kagglehub", SimpleNamespace(dataset_download=refuse))
    text = message_of(prepare, composed("prepare", "data=fish"))
    for words in ("401 Client Error: you must authenticate\n", "kaggle.com/settings", "kaggle.json"):
        assert words in text
    assert "python -m fish_lightning.prepare data=fish data.archive=FILE.zip" in text
    assert not (tmp_path / "data").exists()


def test_without_kagglehub_both_remedies_are_named(composed, monkeypatch):
    monkeypatch.setitem(sys.modules, "kagglehub", None)  # its import fails
    text = message_of(prepare, composed("prepare", "data=fish"))
    assert "data.root: data/fish does not exist (working directory:" in text and "pip install kagglehub" in text
    assert "data.archive=FILE.zip" in text and f"kaggle.com/datasets/{HANDLE}" in text


def test_it_warns_of_what_a_training_would_warn_of(tmp_path, composed, make_image, capsys):
    for number in range(48):
        name, track, frame = ("bass", "trout")[number % 2], number % 12, number // 12
        make_image(tmp_path / "data" / name / f"fish_{track:03}_{frame:04}.png", (90, 5 * number, 9), number)
    make_image(tmp_path / "data" / "eel" / "1.png", (9, 9, 99), 7)
    overrides = ("data=folder", "data.root=data", "data.find_copies=false")
    prepare(composed("prepare", *overrides, "data.photograph='(.+)_[0-9]+'"))
    assert "note: class 'eel' has only one photograph and is missing from val and test" in capsys.readouterr().out
    (tmp_path / "data" / "eel" / "1.png").rename(tmp_path / "data" / "bass" / "1.png")
    (tmp_path / "data" / "eel").rmdir()
    prepare(composed("prepare", *overrides))
    said = capsys.readouterr().out
    assert "test images are named like training images" in said and "data.photograph=" in said


def test_a_data_set_too_small_to_split_is_an_error(composed, tmp_path, make_folder):
    make_folder(tmp_path / "data", 2, 1)
    text = message_of(prepare, composed("prepare", "data=folder", "data.root=data", "data.find_copies=false"))
    assert text.startswith("training would fail: too few images for this split: 2 images of 2 classes in data")
