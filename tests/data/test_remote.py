"""Images behind fsspec URLs: listed and read in place by predict, copied into the cache for training."""

import json
import shutil
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import albumentations as A
import fsspec
import numpy as np
import pytest
from torch.utils.data import DataLoader

from fish_lightning.data import remote
from fish_lightning.data.decoding import UnreadableImage, decode
from fish_lightning.data.inputs import InputImages, read_inputs
from fish_lightning.errors import UserError
from fish_lightning.predicting.store import RemoteFolder

BUCKET = "memory:///bucket/fish"


@pytest.fixture
def store(tmp_path, make_folder):
    """fsspec's store in memory, with three classes of four images, and things that are no images."""
    memory = fsspec.filesystem("memory")
    memory.put(str(make_folder(tmp_path / "local")), "/bucket/fish", recursive=True)
    for name in ("class a/notes.txt", "class a/.hidden.png", ".thumbnails/x.png"):
        memory.pipe(f"/bucket/fish/{name}", b"x")
    yield memory
    memory.rm("/bucket", recursive=True)


def urls(classes="abc"):
    return [f"{BUCKET}/class {letter}/{number:03}.png" for letter in classes for number in range(4)]


@pytest.mark.parametrize("path", ["s3://b/x", "s3:/b/x", "https://h/x", "gs://b", "simplecache::s3://b/x"])
def test_urls_keep_both_slashes_also_through_pathlib(path):
    assert remote.is_remote(path) and "://" in remote.url_of(path)
    assert remote.url_of("s3:/b/x") == remote.url_of("s3://b/x") == "s3://b/x"


@pytest.mark.parametrize("path", ["photos", "/photos/a:b", "c:/photos", "a/b://c", "photos/s3://x", "file", "10:30/x"])
def test_paths_are_no_urls(path):
    assert not remote.is_remote(path)


def test_a_folder_a_pattern_and_an_image_are_listed_without_what_is_no_image(store, tmp_path):
    assert list(read_inputs(BUCKET)) == list(read_inputs(f"{BUCKET}/")) == urls()
    assert list(read_inputs(f"{BUCKET}/class ?/000.png")) == urls()[::4]
    assert list(read_inputs(urls()[5])) == [urls()[5]]
    with pytest.raises(UserError, match=r"input: memory:///bucket/nothing names no image"):
        read_inputs("memory:///bucket/nothing")
    assert (decode(urls()[5]) == decode(tmp_path / "local" / "class b" / "001.png")).all()


def test_what_cannot_be_read_is_told_in_words(store, monkeypatch):
    store.pipe("/bucket/fish/class a/000.png", b"")
    for url, why in ((urls()[0], "not an image"), (f"{BUCKET}/gone.png", "cannot be read")):
        with pytest.raises(UnreadableImage, match=f"^{url}: .*{why}"):
            decode(url)
    with pytest.raises(UserError, match=r"input: nosuch://bucket cannot be opened .*\n.*pip install"):
        read_inputs("nosuch://bucket")
    monkeypatch.setattr(type(store), "find", lambda *_, **__: 1 / 0)
    with pytest.raises(UserError, match=r"cannot be listed \(ZeroDivisionError"):
        read_inputs(BUCKET)


def test_predict_reads_a_store_as_it_reads_a_folder(store, trained, tmp_path, monkeypatch):
    from hydra import compose, initialize_config_dir

    from fish_lightning.cli import CONF
    from fish_lightning.predict import predict

    def entries(place, name, *overrides):
        words = (f"ckpt={trained.folder}", f"input='{place}'", f"paths.output={tmp_path / name}", "trainer=cpu")
        with initialize_config_dir(CONF, version_base="1.3"):
            predict(compose("predict", [*words, *overrides]))
        return json.loads((tmp_path / name / "predictions.json").read_text())

    monkeypatch.chdir(tmp_path)
    here = entries("local", "here", "num_workers=0", "contact_sheet=0")
    there = entries(BUCKET, "there", "num_workers=1", "contact_sheet=1")
    assert (tmp_path / "there" / "contact_sheet.png").stat().st_size > 1000
    assert [entry["path"] for entry in there] == urls()
    assert [entry["probabilities"] for entry in here] == [entry["probabilities"] for entry in there]


def test_training_copies_a_store_once_and_then_what_has_changed(store, make_data, tmp_path, capsys):
    def pixels(number):
        data = make_data(BUCKET, cache_dir=tmp_path / "cache", find_copies=True, cache="on")
        copy = data.catalog.root
        assert len(list(copy.rglob("[!.]*.png"))) == number and copy.is_relative_to(tmp_path / "cache")
        assert not list(copy.rglob(".[0-9]*"))
        return data.pixels.pixels

    first = np.array(pixels(12))
    assert "fetching 12 of 12 images of memory:///bucket/fish to " in capsys.readouterr().out
    pixels(12)
    assert "fetching" not in capsys.readouterr().out
    store.rm("/bucket/fish/class a/000.png")
    shutil.copy(tmp_path / "local" / "class c" / "000.png", tmp_path / "other.png")
    store.put(str(tmp_path / "other.png"), "/bucket/fish/class b/000.png")
    assert (pixels(11)[3] != first[4]).any()
    assert "fetching 1 of 11 images" in capsys.readouterr().out


def test_a_store_that_fails_leaves_no_half_image_and_the_next_fetch_continues(store, tmp_path, monkeypatch):
    folder, get = remote.copy_of(BUCKET, tmp_path), type(store).get

    def half(self, sources, targets):
        get(self, sources[:1], targets[:1])
        raise ConnectionResetError("gone")

    monkeypatch.setattr(remote, "BLOCK", 5)
    monkeypatch.setattr(type(store), "get", half)
    with pytest.raises(UserError, match="cannot be fetched"):
        remote.fetch(BUCKET, folder)
    assert not list(folder.rglob("*.png"))
    monkeypatch.setattr(type(store), "get", get)
    remote.fetch(BUCKET, folder)
    assert len(list(folder.rglob("*.png"))) == 12


def test_training_from_a_store_requires_a_cache_and_images(store, make_data, tmp_path):
    with pytest.raises(UserError, match=r"data\.cache_dir=DIR"):
        make_data(BUCKET)
    with pytest.raises(UserError, match="has no image"):
        make_data("memory:///bucket/empty", cache_dir=tmp_path)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def test_images_on_a_web_server_are_read_in_place(tmp_path, make_image):
    image = make_image(tmp_path / "served" / "a.png", (90, 90, 90), 1)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "served")))
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/a.png"
        (tmp_path / "list.txt").write_text(f"{url}\nserved/a.png\n")
        files = read_inputs(str(tmp_path / "list.txt"))
        assert list(files) == [url, str(image)]
        assert (decode(files[0]) == decode(files[1])).all()
        # A worker forked from a process that has a connection opens its own.
        images = InputImages(files, A.Compose([A.ToTensorV2()]))
        (((one, other),),) = [
            [group["image"] for group in batch]
            for batch in DataLoader(images, batch_size=None, sampler=[range(2)], num_workers=1)
        ]
        assert (one == other).all()
    finally:
        server.shutdown()
        server.server_close()


def test_s3_is_read_copied_and_written(tmp_path, make_folder, monkeypatch):
    """Against moto's server."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        for name, value in (("ACCESS_KEY_ID", "x"), ("SECRET_ACCESS_KEY", "x"), ("DEFAULT_REGION", "us-east-1")):
            monkeypatch.setenv(f"AWS_{name}", value)
        store = fsspec.filesystem("s3")
        store.mkdir("bucket")
        local = make_folder(tmp_path / "local")
        store.put(f"{local}/", "bucket/fish/", recursive=True)
        files = read_inputs("s3://bucket/fish")
        assert list(files) == [url.replace("memory:///", "s3://") for url in urls()]
        assert (decode(files[5]) == decode(local / "class b" / "001.png")).all()
        assert list(read_inputs("s3://bucket/fish/class ?/000.png")) == list(files)[::4]
        with pytest.raises(UnreadableImage, match="cannot be read"):
            decode("s3://bucket/fish/gone.png")
        with pytest.raises(UserError, match="cannot be listed"):
            read_inputs("s3://no-such-bucket/fish")
        folder = remote.copy_of("s3://bucket/fish", tmp_path / "cache")
        remote.fetch("s3://bucket/fish", folder)
        assert len(list(folder.rglob("*.png"))) == 12
        written = RemoteFolder("s3://bucket/answers").below("predictions")
        assert written.names() == set()
        written.write("part-00000.csv", b"one")
        written.write("part-00000.csv", b"two")
        assert (written.names(), written.read("part-00000.csv")) == ({"part-00000.csv"}, b"two")
        with pytest.raises(FileNotFoundError):
            written.read("part-00001.csv")
        with pytest.raises(UserError, match=r"output: s3://no-such-bucket/x/a cannot be written \("):
            RemoteFolder("s3://no-such-bucket/x").write("a", b"")
    finally:
        server.stop()
