"""``predict output=URL``: rows are written to a store, from which any machine resumes. fsspec's memory stands in."""

import csv
import io
import json

import fsspec
import pytest

from fish_lightning.data import inputs
from fish_lightning.data.inputs import read_inputs
from fish_lightning.errors import UserError
from fish_lightning.predicting.folders import predict_folder
from fish_lightning.predicting.parts import Parts
from fish_lightning.predicting.store import LocalFolder, RemoteFolder
from fish_lightning.resume.signals import Stopped

URL = "memory://bucket/answers"
PARTS = [f"predictions/part-{part:05}.csv" for part in range(6)]


@pytest.fixture
def bucket():
    """``bucket()``: the names of the files in the store, below ``URL``."""
    memory = fsspec.filesystem("memory")
    yield lambda: sorted(path.removeprefix("/bucket/answers/") for path in memory.find("/bucket/answers"))
    if memory.exists("/bucket"):
        memory.rm("/bucket", recursive=True)


def read(name):
    return fsspec.filesystem("memory").cat_file(f"/bucket/answers/{name}")


def test_all_that_a_folder_has_is_written_to_the_store(predict_here, photos, out, bucket, tmp_path, capsys):
    with pytest.raises(UserError, match="2 of 24 files could not be read"):
        predict_here(f"input={photos}", f"paths.output={tmp_path / 'local'}")
    capsys.readouterr()
    with pytest.raises(UserError, match="2 of 24 files could not be read"):
        predict_here(f"input={photos}", f"output={URL}", "contact_sheet=3")
    sheet = ["contact_sheet.png", "predictions.csv", "predictions.json"]
    assert bucket() == [*sheet, "predictions/manifest.json", *PARTS]
    assert (
        f"folder  {URL}  (predictions.csv, predictions.json, contact_sheet.png: 3 of 24 files)"
        in capsys.readouterr().out
    )
    for name in ["predictions.csv", "predictions.json", *PARTS]:
        assert read(name) == (tmp_path / "local" / name).read_bytes()
    assert not list((out.folder / "predictions").glob("part-*")), "parts are in the store only"


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_a_stopped_run_is_resumed_from_the_store_in_another_folder(
    predict_here, photos, bucket, tmp_path, monkeypatch, capsys, form
):
    words, decode, seen = (f"input={photos}", f"output={URL}", f"format={form}"), inputs.decode, []

    def stop_at_the_ninth(path):
        seen.append(path)
        if len(seen) == 9:
            raise Stopped("stopped", 15)
        return decode(path)

    monkeypatch.setattr(inputs, "decode", stop_at_the_ninth)
    with pytest.raises(Stopped):
        predict_here(*words, f"paths.output={tmp_path / 'one'}")
    assert bucket() == ["predictions/manifest.json", *(name.replace("csv", form) for name in PARTS[:2])]
    monkeypatch.setattr(inputs, "decode", lambda path: seen.append(path) or decode(path))
    del seen[:]
    with pytest.raises(UserError, match="2 of 24"):
        predict_here(*words, f"paths.output={tmp_path / 'two'}")
    assert f"resuming {URL}: 8 of 24 files are done" in capsys.readouterr().out
    assert len(seen) == 16
    assert [entry["path"] for entry in json.loads(read("predictions.json"))] == sorted(
        str(file) for file in photos.iterdir()
    )


def test_shards_on_machines_that_share_only_the_store(predict_here, photos, bucket, tmp_path, capsys):
    words = (f"input={photos}", f"output={URL}")
    predict_here(*words, "shard=1/2", f"paths.output={tmp_path / '1'}")
    with pytest.raises(UserError, match="2 of 24 files could not be read"):  # both are in the last part
        predict_here(*words, "shard=2/2", f"paths.output={tmp_path / '2'}")
    assert "shard 1 of 2 is complete; other shards are not yet" in capsys.readouterr().out
    rows = list(csv.DictReader(io.StringIO(read("predictions.csv").decode())))
    assert [row["path"] for row in rows] == sorted(str(file) for file in photos.iterdir())
    assert json.loads(read("predictions/manifest.json"))["complete"]


def test_a_store_with_predictions_of_other_files_is_refused(predict_here, photos, bucket):
    predict_here(f"input={photos}/0*.png", f"output={URL}")
    with pytest.raises(UserError, match=r"other files \(10, now 1\)\nstart again in another folder \(output=URL\)"):
        predict_here(f"input={photos}/00.png", f"output={URL}")


def test_a_damaged_part_is_named_by_its_url(predict_here, photos, bucket):
    predict_here(f"input={photos}/0*.png", f"output={URL}")
    fsspec.filesystem("memory").pipe_file(f"/bucket/answers/{PARTS[1]}", b"path\nx\n")
    with pytest.raises(UserError, match=rf"{URL}/{PARTS[1]} is corrupt"):
        predict_here(f"input={photos}/0*.png", f"output={URL}")


def test_a_store_that_refuses_is_noticed_before_the_first_image(predict_here, photos, monkeypatch):
    monkeypatch.setattr(inputs, "decode", lambda path: pytest.fail("an image was read"))

    def refuse(self, path, value, **_):
        raise PermissionError("Access Denied")

    monkeypatch.setattr("fsspec.implementations.memory.MemoryFileSystem.pipe_file", refuse)
    with pytest.raises(UserError) as error:
        predict_here(f"input={photos}", f"output={URL}")
    assert str(error.value) == (
        f"output: {URL}/predictions/manifest.json cannot be written (PermissionError: Access Denied)"
    )


@pytest.mark.parametrize("url", ["http://127.0.0.1/x", "file:///tmp/x", "answers", "''"])
def test_what_is_no_store_is_refused(run, url, tmp_path):
    done = run("predict", "ckpt=a", "input=b", f"output={url}", cwd=tmp_path)
    assert done.returncode == 1
    assert "output=" in done.stderr
    assert "expected the URL of a folder in a store (s3://bucket/folder) or null" in done.stderr


def test_where_files_appear_while_they_are_received_they_are_renamed(tmp_path, monkeypatch):
    folder = RemoteFolder(f"local://{tmp_path}/new")
    assert folder.names() == set()
    folder.write("a.csv", b"one")
    folder.write("a.csv", b"two")
    assert (folder.names(), folder.read("a.csv")) == ({"a.csv"}, b"two")
    system, pipe = type(folder._system), type(folder._system).pipe_file

    def lose_the_connection(self, path, value, **options):
        pipe(self, path, value[:1], **options)
        raise ConnectionError("lost")

    monkeypatch.setattr(system, "pipe_file", lose_the_connection)
    with pytest.raises(UserError, match=r"a\.csv cannot be written"):
        folder.write("a.csv", b"three")
    assert folder.read("a.csv") == b"two" and folder.names() == {"a.csv"}


def test_both_folders_agree(tmp_path, bucket):
    for folder in (LocalFolder(tmp_path), RemoteFolder(URL)):
        inner = folder.below("x")
        inner.write("a", b"1")
        assert (inner.names(), inner.read("a")) == ({"a"}, b"1")
        with pytest.raises(FileNotFoundError):
            inner.read("b")
    assert str(inner.below("a")) == f"{URL}/x/a"


@pytest.mark.parametrize("shard", [None, "1/3"])
def test_runs_of_one_command_share_a_local_folder_whose_lock_they_hold(shard, tmp_path):
    first, second, other = (predict_folder(str(tmp_path), "x", shard, url, "a.ckpt") for url in (URL, URL, f"{URL}2"))
    assert first == second != other


def test_a_part_of_a_slower_run_does_not_replace_a_longer_one(predict_here, photos, bucket, tmp_path):
    predict_here(f"input={photos}/0*.png", f"output={URL}")
    whole = read(PARTS[0])
    parts = Parts(RemoteFolder(f"{URL}/predictions"), read_inputs(str(photos / "0*.png")), 4, "csv")
    parts.write(0, list(parts.rows([0]))[:2])
    assert read(PARTS[0]) == whole
    fsspec.filesystem("memory").rm_file(f"/bucket/answers/{PARTS[0]}")
    parts.write(0, list(parts.rows([1]))[:2])
    assert len(list(parts.rows([0]))) == 2


def test_a_manifest_that_another_machine_has_written_first_is_seen(predict_here, photos, bucket, monkeypatch):
    pipe = fsspec.implementations.memory.MemoryFileSystem.pipe_file

    def lose_the_race(self, path, value, **options):
        if path.endswith("manifest.json"):
            value = json.dumps(json.loads(value) | {"files": 99}).encode()
        return pipe(self, path, value, **options)

    monkeypatch.setattr("fsspec.implementations.memory.MemoryFileSystem.pipe_file", lose_the_race)
    with pytest.raises(UserError, match=r"other files \(99, now 10\)"):
        predict_here(f"input={photos}/0*.png", f"output={URL}")


def test_a_signal_while_a_part_is_sent_ends_the_run_as_such(predict_here, photos, bucket, monkeypatch):
    def stop(self, path, value, **_):
        raise Stopped("stopped by SIGINT immediately", 2)

    monkeypatch.setattr("fsspec.implementations.memory.MemoryFileSystem.pipe_file", stop)
    with pytest.raises(Stopped, match="stopped by SIGINT immediately"):
        predict_here(f"input={photos}/0*.png", f"output={URL}")


def test_a_file_system_that_cannot_replace_a_file_at_once_is_refused():
    with pytest.raises(UserError, match="does not support atomic writes: a crash could leave half a file"):
        RemoteFolder("simplecache::memory://bucket/x")
