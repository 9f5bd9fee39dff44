"""``python -m fish_lightning.prepare`` as a user runs it."""

import os
import zipfile

import pytest

from fish_lightning.data.sources import ArchiveSource

HANDLE = "crowww/a-large-scale-fish-dataset"


def report_of(cwd):
    (folder,) = (cwd / "logs" / "prepare" / "runs").iterdir()
    return (folder / "data_report.html").read_text(encoding="utf-8")


def is_short_error(done, *words):
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    lines = done.stderr.strip().splitlines()
    assert lines[0].startswith("error: ") and len(lines) <= 5, done.stderr
    assert all(word in done.stderr for word in words), done.stderr
    return True


@pytest.fixture
def cache(tmp_path):
    return {"FISH_LIGHTNING_CACHE": str(tmp_path / "cache")}


@pytest.fixture
def stand_in(tmp_path, make_archive):
    """``stand_in(body)``: an environment in which ``kagglehub`` is a module of one function with this body."""
    repository = os.environ.get("PYTHONPATH", "")

    def make(body):
        folder = tmp_path / "site"
        folder.mkdir()
        (folder / "kagglehub.py").write_text(f"def dataset_download(handle):\n    {body}\n")
        return {"PYTHONPATH": f"{folder}{os.pathsep}{repository}", "FISH_LIGHTNING_CACHE": str(tmp_path / "cache")}

    return make


def test_a_folder_is_checked_and_reported(tmp_path, run, make_folder, cache):
    root = make_folder(tmp_path / "my photos, ü", 2, 4)
    done = run("prepare", "data=folder", f"data.root='{root}'", cwd=tmp_path, env=cache)
    assert done.returncode == 0, done.stderr
    assert "kind a       4" in done.stdout and "nothing to mend was found" in done.stdout
    assert f"8 images of 2 kinds in {root}" in done.stdout
    assert "my photos, ü: 8 images of 2 kinds" in report_of(tmp_path)
    assert list((tmp_path / "cache").glob("photographs-*.npz"))  # what training will not have to look for again


def test_what_stops_a_training_ends_it_with_an_error_after_the_report(tmp_path, run, make_folder, cache):
    root = make_folder(tmp_path / "data", 2, 4)
    (root / "kind a" / "9.png").write_bytes(b"")
    (root / "kind c").mkdir()
    done = run("prepare", "data=folder", f"data.root={root}", cwd=tmp_path, env=cache)
    assert is_short_error(done, "1 unreadable image, class folders without an image (kind c)", "data_report.html")
    assert "kind a/9.png: an empty file" in report_of(tmp_path)


def test_a_zip_file_is_unpacked_read_and_kept(tmp_path, run, make_archive, cache):
    root = make_archive(tmp_path / "original")
    with zipfile.ZipFile(tmp_path / "a=b.zip", "w") as opened:
        for file in sorted(root.rglob("*.*")):
            opened.write(file, file.relative_to(root))
    overrides = ("data=fish", "data.root=here/fish", "data.archive='a=b.zip'")
    done = run("prepare", *overrides, cwd=tmp_path, env=cache)
    assert done.returncode == 0, done.stderr
    assert "unpacked 14 files into here/fish" in done.stdout
    assert ArchiveSource(tmp_path / "here" / "fish").read().paths.tolist() == ArchiveSource(root).read().paths.tolist()
    again = run("prepare", *overrides, cwd=tmp_path, env=cache)
    assert "unpacked 0 files into here/fish" in again.stdout


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data=folder", "data.root=to", "data.archive=evil.zip"], ("'../evil.png', which would be written outside",)),
        (["data=folder", "data.root=to", "data.archive=half.zip"], ("half.zip is not a zip file, or only a part",)),
        (["data=folder", "data.root=to", "data.archive=no.zip"], ("data.archive: no file no.zip",)),
        (["data=folder", "data.root=to", "data.archive=big.zip", "data.archive_limit=0.001"], ("than the 1 MB that",)),
        (["data=folder", "data.archive=big.zip"], ("data.root: no folder of images is given", "data.root=DIR")),
        (["data=sample", "data.archive=big.zip"], ("data.archive: say what it holds",)),
        (["data=folder", "data.root=nowhere"], ("data.root: nowhere does not exist",)),
        (["data=folder", "data.root=bare"], ("no images in bare",)),
        (["data=folder", "data.catalog=table.csv"], ("1 of 1 images that are not there, the first gone.png",)),
        (["data=checkpoint"], ("there is nothing to prepare",)),
    ],
)
def test_what_cannot_be_prepared_is_a_short_error(tmp_path, run, cache, overrides, words):
    for name, member in (("evil.zip", "../evil.png"), ("big.zip", "a/1.png")):
        with zipfile.ZipFile(tmp_path / name, "w") as opened:
            opened.writestr(member, os.urandom(2_000_000))
    (tmp_path / "half.zip").write_bytes((tmp_path / "big.zip").read_bytes()[:1_000_000])
    (tmp_path / "bare").mkdir()
    (tmp_path / "table.csv").write_text("path,label\ngone.png,x\n")
    assert is_short_error(run("prepare", *overrides, cwd=tmp_path, env=cache), *words)
    assert not (tmp_path.parent / "evil.png").exists() and not (tmp_path / "evil.png").exists()


@pytest.mark.parametrize("module", ["prepare", "train"])
def test_fish_are_downloaded_where_there_is_no_folder(tmp_path, run, make_archive, stand_in, module):
    download = make_archive(tmp_path / "kaggle" / "versions" / "4")
    env = stand_in(f"print('asked for', handle); return {str(download)!r}")
    # The training ends at once, at an unknown model: by then it has its data.
    overrides = {"prepare": ["data.root=data/fish"], "train": ["data.root=data/fish", "model.name=no"]}[module]
    done = run(module, "data=fish", *overrides, cwd=tmp_path, env=env)
    assert f"data.root: data/fish does not exist: downloading {HANDLE} from Kaggle\nasked for {HANDLE}" in done.stdout
    assert (tmp_path / "data" / "fish").resolve() == download.resolve()
    assert len(ArchiveSource(tmp_path / "data" / "fish").read()) == 6
    if module == "prepare":
        assert done.returncode == 0, done.stderr
        assert "asked for" not in run(module, "data=fish", *overrides, cwd=tmp_path, env=env).stdout  # there already


def test_a_download_that_fails_says_how_to_get_a_token_and_what_to_do_by_hand(tmp_path, run, stand_in):
    env = stand_in("raise RuntimeError('401 Client Error: you must authenticate\\n  more')")
    done = run("prepare", "data=fish", cwd=tmp_path, env=env)
    assert is_short_error(done, "401 Client Error: you must authenticate\n", "kaggle.com/settings", "kaggle.json")
    assert "python -m fish_lightning.prepare data=fish data.archive=FILE.zip" in done.stderr
    assert not (tmp_path / "data").exists()


def test_without_kagglehub_both_ways_are_named(tmp_path, run, stand_in):
    env = stand_in("pass")
    (tmp_path / "site" / "kagglehub.py").write_text("raise ImportError\n")
    done = run("prepare", "data=fish", cwd=tmp_path, env=env)
    assert is_short_error(done, "data.root: data/fish does not exist (seen from", "pip install kagglehub")
    assert "data.archive=FILE.zip" in done.stderr and f"kaggle.com/datasets/{HANDLE}" in done.stderr
