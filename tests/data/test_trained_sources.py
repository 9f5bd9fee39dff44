"""Sources of an evaluation: the recorded catalog, and other data without leaks from the training data."""

import json
import shutil

import pytest
from helpers import message_of

from fish_lightning.data.sources import FolderSource
from fish_lightning.data.trained_sources import OtherSource, RecordedSource
from fish_lightning.files import read_rows


def test_recorded_catalog_may_be_moved(make_folder, tmp_path):
    state = FolderSource(make_folder(tmp_path / "before", 2)).read().state()
    (tmp_path / "before").rename(tmp_path / "now")
    assert "data.root" in message_of(RecordedSource(None, state).read)
    (tmp_path / "before").mkdir()
    text = message_of(RecordedSource(None, state).read)
    assert "does not contain the images this checkpoint was trained on (no class a/000.png)" in text
    moved = RecordedSource(tmp_path / "now", state).read()
    assert moved.root == tmp_path / "now" and moved.paths.tolist() == state["paths"]


def test_other_data_get_the_labels_of_the_model_and_its_splits_by_path_and_new_names_are_tested(make_folder, tmp_path):
    known = FolderSource(make_folder(tmp_path / "known", ["bass", "eel", "trout"], 2)).read()
    state = known.state() | {"splits": ["train", "test"] * 3}
    make_folder(tmp_path / "other", ["eel", "trout"], 3)
    catalog = OtherSource(tmp_path / "other", FolderSource, state).read()
    assert catalog.classes == ("bass", "eel", "trout")
    assert catalog.labels.tolist() == [1, 1, 1, 2, 2, 2]
    assert catalog.splits.tolist() == ["train", "test", "test"] * 2


def test_other_data_keep_their_split_without_their_own_training_images(make_folder, tmp_path):
    state = FolderSource(make_folder(tmp_path / "known", 2, 2)).read().state()
    for part in ("train", "val", "test"):
        make_folder(tmp_path / "other" / part, 2, 1)
    catalog = OtherSource(tmp_path / "other", FolderSource, state).read()
    assert dict(zip(catalog.paths, catalog.splits, strict=True)) == {
        f"{part}/class {c}/000.png": "" if part == "train" else part for part in ("train", "val", "test") for c in "ab"
    }
    assert set(OtherSource(tmp_path / "other", FolderSource, state, keep_split=False).read().splits) == {"test"}


def test_unknown_class_is_an_error(make_folder, tmp_path):
    state = FolderSource(make_folder(tmp_path / "known", ["bass", "trout"], 2)).read().state()
    make_folder(tmp_path / "other", ["bass", "pike"], 1)
    text = message_of(OtherSource(tmp_path / "other", FolderSource, state).read)
    assert "classes that the checkpoint does not know: pike" in text and "it knows: bass, trout" in text


@pytest.mark.parametrize("cache", ["off", "on"])
def test_the_test_split_alone_is_enough_for_its_evaluation(trained, tiny_data, run, tmp_path, cache):
    rows = read_rows(trained.folder / "split.csv", "split", ("path", "split"))
    for row in rows:
        if row["split"] == "test":
            (tmp_path / "few" / row["path"]).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(tiny_data / row["path"], tmp_path / "few" / row["path"])
    settings = (f"data.root={tmp_path / 'few'}", "trainer=cpu", f"data.cache={cache}", "hydra.run.dir=out")
    done = run("evaluate", f"ckpt={trained.folder}", *settings, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    before = json.loads((trained.folder / "summary.json").read_text())["test"]
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["test"]["accuracy"] == before["accuracy"]
    done = run("evaluate", f"ckpt={trained.folder}", *settings, "subset=val", cwd=tmp_path)
    assert done.returncode == 1 and "pass the folder they are in now: data.root=DIR" in done.stderr
