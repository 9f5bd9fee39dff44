"""``python -m fish_lightning.evaluate`` as a user runs it."""

import json
import shutil

import pytest


def scores(cwd):
    (folder,) = (cwd / "logs" / "evaluate" / "runs").iterdir()
    return json.loads((folder / "summary.json").read_text())


def test_it_gives_the_numbers_of_the_training_run_to_the_last_digit(tmp_path, trained, run):
    done = run("evaluate", f"ckpt={trained.folder / 'checkpoints' / 'best.ckpt'}", "trainer=cpu", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert scores(tmp_path)["test"] == json.loads((trained.folder / "summary.json").read_text())["test"]
    accuracy = next(line for line in trained.stdout.splitlines() if line.startswith("test accuracy"))
    assert accuracy in done.stdout.splitlines()


def test_images_that_have_moved_are_found_where_the_user_says(tmp_path, trained, tiny_data, run):
    shutil.copytree(tiny_data, tmp_path / "moved")
    checkpoint = f"ckpt={trained.folder / 'checkpoints' / 'best.ckpt'}"
    done = run("evaluate", checkpoint, "trainer=cpu", "data.root=moved", "subset=val", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    expected = json.loads((trained.folder / "summary.json").read_text())["val"]
    assert scores(tmp_path)["val"]["n"] == expected["n"] == 3
    assert scores(tmp_path)["val"]["loss"] == pytest.approx(expected["loss"], rel=1e-5)


def test_other_data_is_scored_whole_by_the_models_class_names(tmp_path, trained, run, make_folder):
    other = make_folder(tmp_path / "other", classes=["kind b", "kind c"], per_class=5)
    data = ("data=folder", f"data.root={other}", "subset=all", "data.find_copies=false")
    done = run("evaluate", f"ckpt={trained.folder / 'checkpoints' / 'best.ckpt'}", "trainer=cpu", *data, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = scores(tmp_path)["all"]
    assert {name: found["per_class"][name]["n"] for name in found["per_class"]} == {
        "kind a": 0,
        "kind b": 5,
        "kind c": 5,
    }


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data=folder", "data.root=strange"], ("classes that the checkpoint does not know: eel", "it knows: kind a")),
        (["data=folder", "data.root=other"], ("subset=test: none of the 4 images", "subset=all")),
        (["subset=best"], ("subset=best: it is one of train, val, test, all",)),
        (["data.root=empty"], ("empty does not hold the images this checkpoint was trained on", "data.root=DIR")),
    ],
)
def test_what_cannot_be_evaluated_is_a_short_error(tmp_path, trained, run, make_folder, overrides, words):
    make_folder(tmp_path / "strange", classes=["eel", "kind a"], per_class=2)
    (tmp_path / "empty").mkdir()
    for name in ("kind a", "kind b"):
        shutil.copytree(tmp_path / "strange" / "eel", tmp_path / "other" / name / "new")
    checkpoint = f"ckpt={trained.folder / 'checkpoints' / 'best.ckpt'}"
    done = run("evaluate", checkpoint, "trainer=cpu", *overrides, cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert all(word in done.stderr for word in words), done.stderr
    assert len(done.stderr.strip().splitlines()) <= 5
