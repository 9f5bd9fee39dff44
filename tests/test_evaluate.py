"""``python -m fish_lightning.evaluate`` as a user runs it."""

import csv
import json
import shutil

import pytest
from PIL import Image

from fish_lightning.data.sample.generate import make_sample


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
        (["data=folder", "data.root=other", "subset=val"], ("subset=val: none of the 4 images", "subset=all")),
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


KINDS = ("Gilt-Head Bream", "Hourse Mackerel", "Trout")


@pytest.fixture(scope="module")
def archive_run(tmp_path_factory, train_tiny):
    """A run on a small archive with its originals: ``.root``, ``.checkpoint``, ``.truth`` and ``.splits`` (by it)."""
    root = tmp_path_factory.mktemp("archive") / "download"
    make_sample(root, seed=3, photographs_per_kind=6, copies=3)
    for folder in (*(root / "Fish_Dataset" / "Fish_Dataset").iterdir(), *(root / "NA_Fish_Dataset").iterdir()):
        if folder.name not in (*KINDS, "Gilt Head Bream", "Horse Mackerel"):
            shutil.rmtree(folder)
    done = train_tiny(root.parent, "data=fish", "split=photograph", "data.find_copies=true", data=root)
    assert done.returncode == 0, done.stderr
    (folder,) = (root.parent / "logs" / "train" / "runs").iterdir()
    with (root / "photographs.csv").open(newline="") as stream:
        done.truth = {row["path"]: row["photograph"] for row in csv.DictReader(stream)}
    with (folder / "split.csv").open(newline="") as stream:
        done.splits = {done.truth[row["path"]]: row["split"] for row in csv.DictReader(stream)}
    done.root, done.checkpoint = root, f"ckpt={folder / 'checkpoints' / 'best.ckpt'}"
    return done


@pytest.mark.slow
@pytest.mark.parametrize("below", ["", "NA_Fish_Dataset"])
def test_originals_whose_copies_were_trained_on_are_left_out_and_the_others_scored(tmp_path, archive_run, run, below):
    data = ("data=fish_originals", f"data.root={archive_run.root / below}")
    done = run("evaluate", archive_run.checkpoint, "trainer=cpu", *data, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    originals = {path: name for path, name in archive_run.truth.items() if path.startswith("NA_Fish_Dataset/")}
    originals = {path: name for path, name in originals.items() if name in archive_run.splits}
    trained = {path for path, name in originals.items() if archive_run.splits[name] == "train"}
    assert len(originals) == 18 and 9 <= len(trained) < 18
    found = scores(tmp_path)
    prefix = "NA_Fish_Dataset/" if below else ""
    assert {prefix + path for path in found["left_out"]["images"]} == trained
    assert found["left_out"]["n"] == len(trained) and 0 <= found["left_out"]["accuracy"] <= 1
    assert found["test"]["n"] == found["test"]["photographs"] == 18 - len(trained)
    assert found["test"]["leaked_test_images"] == 0 and found["missing_training_images"] == 0
    assert f"left out: {len(trained)} images that are copies of training images" in done.stdout
    (folder,) = (tmp_path / "logs" / "evaluate" / "runs").iterdir()
    with (folder / "test_predictions.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {prefix + row["path"] for row in rows} == set(originals) - trained
    assert {row["label"] for row in rows} == set(KINDS)
    assert sum(int(row["correct"]) for row in rows) / len(rows) == pytest.approx(found["test"]["accuracy"])


@pytest.mark.slow
def test_where_the_training_images_are_gone_it_says_that_leaks_cannot_be_checked(tmp_path, archive_run, run):
    shutil.copytree(archive_run.root / "NA_Fish_Dataset", tmp_path / "NA_Fish_Dataset")
    moved = archive_run.root.rename(archive_run.root.with_name("gone"))
    try:
        data = ("data=fish_originals", f"data.root={tmp_path}")
        done = run("evaluate", archive_run.checkpoint, "trainer=cpu", *data, cwd=tmp_path)
    finally:
        moved.rename(archive_run.root)
    assert done.returncode == 0, done.stderr
    found = scores(tmp_path)
    assert found["test"]["n"] == 18 and found["left_out"] is None
    assert found["missing_training_images"] == 3 * sum(split == "train" for split in archive_run.splits.values())
    assert (
        "training images are gone: whether copies of them are\n         among the images scored cannot" in done.stdout
    )


@pytest.mark.slow
def test_images_that_were_moved_are_known_again_by_their_paths(tmp_path, archive_run, run):
    moved = archive_run.root.rename(archive_run.root.with_name("moved"))
    try:
        done = run(
            *("evaluate", archive_run.checkpoint, "trainer=cpu", "data=fish", f"data.root={moved}"), cwd=tmp_path
        )
    finally:
        moved.rename(archive_run.root)
    assert done.returncode == 0, done.stderr
    splits = list(archive_run.splits.values())
    assert scores(tmp_path)["missing_training_images"] == 0
    assert scores(tmp_path)["test"]["n"] == 3 * sum(split != "train" for split in splits)


@pytest.mark.slow
def test_copies_in_any_other_folder_are_left_out_too_and_all_of_them_is_said(tmp_path, archive_run, run):
    trained = next(path for path, name in archive_run.truth.items() if archive_run.splits.get(name) == "train")
    (tmp_path / "other").mkdir()
    with Image.open(archive_run.root / trained) as image:
        for number, kind in enumerate(KINDS[:2]):
            (tmp_path / "other" / kind).mkdir()
            image.rotate(90 * (number + 1), expand=True).save(tmp_path / "other" / kind / "1.jpg", quality=90)
    done = run("evaluate", archive_run.checkpoint, "trainer=cpu", "data=folder", "data.root=other", cwd=tmp_path)
    assert done.returncode == 1
    assert "none of the 2 images in other is in that split" in done.stderr
    assert "(2 were trained on, or are copies of that); to score all of them: subset=all" in done.stderr


def test_a_table_is_scored_as_it_says(tmp_path, trained, tiny_data, run):
    lines = ["path,label,split", "kind a/000.png,kind a,train", "kind b/001.png,kind b,test", "kind b/002.png,kind b,"]
    (tmp_path / "table.csv").write_text("\n".join(lines))
    shutil.copytree(tiny_data, tmp_path / "moved")
    for file in (tmp_path / "moved").rglob("*.png"):
        file.rename(file.with_name(f"new {file.name}"))
    table = (tmp_path / "table.csv").read_text().replace("/0", "/new 0")
    (tmp_path / "table.csv").write_text(table)
    data = ("data=folder", "data.find_copies=false", "data.root=moved", "data.catalog=table.csv")
    checkpoint = f"ckpt={trained.folder / 'checkpoints' / 'best.ckpt'}"
    done = run("evaluate", checkpoint, "trainer=cpu", *data, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert scores(tmp_path)["test"]["n"] == 1
