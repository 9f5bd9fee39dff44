"""``python -m fish_lightning.evaluate`` as a user runs it."""

import csv
import json
import os
import shutil

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image

from fish_lightning.cli import CONF
from fish_lightning.data import datamodule
from fish_lightning.data.decoding import decode
from fish_lightning.data.sample import generate
from fish_lightning.errors import UserError
from fish_lightning.evaluate import evaluate
from fish_lightning.evaluation.outputs import Outputs
from fish_lightning.evaluation.runs import load_run
from fish_lightning.evaluation.unknowns import neighbor_score
from fish_lightning.models.trained import open_model
from fish_lightning.models.tta import views
from fish_lightning.plotting import figures


@pytest.fixture
def evaluated(tmp_path, trained, monkeypatch):
    """``evaluated(*overrides, ckpt=FILE)``: ``summary.json`` of an evaluation in this process and in ``tmp_path``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(figures, "save", lambda *_: None)  # a second for each evaluation

    def evaluate_now(*overrides, ckpt=trained.folder / "checkpoints" / "best.ckpt"):
        places = (f"ckpt={ckpt}", f"paths.output={tmp_path / 'out'}", f"paths.cache={tmp_path / 'cache'}")
        places += ("report=false",)  # half a second for each
        with initialize_config_dir(CONF, version_base="1.3"):
            cfg = compose("evaluate", [*places, "trainer=cpu", *overrides])
        evaluate(cfg)
        return json.loads((tmp_path / "out" / "summary.json").read_text())

    return evaluate_now


@pytest.fixture(scope="module")
def summary(trained):
    """``summary.json`` of the training run."""
    return json.loads((trained.folder / "summary.json").read_text())


def test_scores_of_the_training_run_are_reproduced_to_the_last_digit(tmp_path, trained, summary, run):
    done = run("evaluate", f"ckpt={trained.folder / 'checkpoints' / 'best.ckpt'}", "trainer=cpu", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "logs" / "evaluate" / "runs").iterdir()
    assert json.loads((folder / "summary.json").read_text())["test"] == summary["test"]
    accuracy = next(line for line in trained.stdout.splitlines() if line.startswith("test accuracy"))
    assert accuracy in done.stdout.splitlines()


def test_views_of_an_image_are_averaged(tmp_path, trained, tiny_data, evaluated):
    evaluated("tta=flips")
    found = Outputs.load(tmp_path / "out" / "logits.npz").subset("test")
    plain = load_run("a", trained.folder).test
    assert found.paths.tolist() == plain.paths.tolist()
    opened, means = open_model(trained.folder), []
    for path in found.paths:
        image = opened.transform(image=decode(tiny_data / path))["image"][None]
        with torch.no_grad():
            mean = torch.stack([opened.module(view).softmax(1) for view in views(image, "flips")]).mean(0)
        means.append(mean[0].numpy())
    assert np.abs(found.probabilities - means).max() < np.abs(found.probabilities - plain.probabilities).max() / 3


def test_images_may_be_moved(tmp_path, summary, tiny_data, evaluated, capsys):
    shutil.copytree(tiny_data, tmp_path / "moved")
    found = evaluated("data.root=moved", "subset=val")["val"]
    assert found["n"] == summary["val"]["n"] == 3
    assert found["loss"] == pytest.approx(summary["val"]["loss"], rel=1e-5)
    said = capsys.readouterr().out
    assert f"val accuracy   {found['accuracy']:.2%}" in said and "test accuracy" not in said


def test_images_replaced_after_training_are_named(tmp_path, trained, tiny_data, evaluated, capsys):
    moved = tmp_path / "moved"
    shutil.copytree(tiny_data, moved)  # keeps the times
    with (trained.folder / "split.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    first, second = [row["path"] for row in rows if row["split"] == "test"][:2]
    trained_on = next(row["path"] for row in rows if row["split"] == "train")
    found = evaluated("data.root=moved")
    assert found["changed_images"] == found["rewritten_images"] == []
    for path in (first, trained_on):
        (moved / path).write_bytes((moved / path).read_bytes() + b"0")
    os.utime(moved / second, ns=(1, 1))
    found = evaluated("data.root=moved")
    assert (found["changed_images"], found["rewritten_images"]) == ([first], [second])
    printed = capsys.readouterr().out
    assert f"warning: 1 image has different content than in the training run: {first}\n" in printed
    assert f"note: 1 image has been rewritten since the training run: {second}\n" in printed


def test_all_of_other_data_is_scored_by_the_class_names_of_the_model(tmp_path, evaluated, make_folder):
    other = make_folder(tmp_path / "other", classes=["class b", "class c"], per_class=5)
    found = evaluated("data=folder", f"data.root={other}", "subset=all", "data.find_copies=false")["all"]
    assert {name: scores["n"] for name, scores in found["per_class"].items()} == {
        "class a": 0,
        "class b": 5,
        "class c": 5,
    }


def test_images_of_new_names_are_tested_beside_images_of_the_training_run(
    tmp_path, evaluated, trained, tiny_data, make_folder
):
    with (trained.folder / "split.csv").open(newline="") as stream:
        known = {row["split"]: row["path"] for row in csv.DictReader(stream)}
    names = [folder.name for folder in sorted(tiny_data.iterdir())]
    for path in (known["train"], known["test"]):
        (tmp_path / "other" / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tiny_data / path, tmp_path / "other" / path)
    for name in names:
        make_folder(tmp_path / "other" / name, ["new"], 6)
    assert evaluated("data=folder", "data.root=other", "data.find_copies=false")["test"]["n"] == 19
    with (tmp_path / "out" / "test_predictions.csv").open(newline="") as stream:
        tested = [row["path"] for row in csv.DictReader(stream)]
    assert known["test"] in tested and known["train"] not in tested and len(set(tested)) == 19


def test_split_of_other_data_is_kept_unless_keep_split_is_false(tmp_path, evaluated, make_folder):
    for part, count in (("train", 1), ("val", 2), ("test", 3)):
        make_folder(tmp_path / "other" / part, 2, count)
    data = ("data=folder", "data.root=other", "data.find_copies=false")
    assert [evaluated(*data, f"data.keep_split={keep}")["test"]["n"] for keep in (True, False)] == [6, 12]


def test_photographs_may_be_defined_by_a_pattern(evaluated, summary):
    assert summary["test"]["accuracy_ci95_photographs"] is None
    found = evaluated("data.photograph='class .'")["test"]
    assert found["photographs"] == 3 and len(found["accuracy_ci95_photographs"]) == 2
    assert found["leaked_test_images"] == found["n"] == summary["test"]["n"]


@pytest.mark.parametrize("persistent", [True, False])
def test_settings_of_workers_reach_the_loader(evaluated, summary, monkeypatch, persistent):
    loaders = []

    class Loader(datamodule.DataLoader):
        def __init__(self, *arguments, **settings):
            loaders.append(settings)
            super().__init__(*arguments, **settings)

    monkeypatch.setattr(datamodule, "DataLoader", Loader)
    found = evaluated("data.num_workers=1", f"data.persistent_workers={persistent}", "data.prefetch_factor=3")
    assert [(loader["persistent_workers"], loader["prefetch_factor"]) for loader in loaders] == [(persistent, 3)]
    assert found["test"]["accuracy"] == summary["test"]["accuracy"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data=folder", "data.root=strange"], ("classes that the checkpoint does not know: eel", "it knows: class a")),
        (["data=folder", "data.root=other", "subset=val"], ("subset=val: none of the 4 images", "subset=all")),
        (["data.root=empty"], ("empty does not contain the images this checkpoint was trained on", "data.root=DIR")),
    ],
)
def test_data_that_cannot_be_evaluated_are_a_short_error(tmp_path, evaluated, make_folder, overrides, words):
    make_folder(tmp_path / "strange", classes=["eel", "class a"], per_class=2)
    (tmp_path / "empty").mkdir()
    for name in ("class a", "class b"):
        shutil.copytree(tmp_path / "strange" / "eel", tmp_path / "other" / name / "new")
    with pytest.raises(UserError) as error:
        evaluated(*overrides)
    assert all(word in str(error.value) for word in words), error.value
    assert len(str(error.value).splitlines()) <= 5


def test_error_is_shown_without_a_traceback(tmp_path, run):
    done = run("evaluate", "ckpt=absent.ckpt", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ckpt: no file absent.ckpt") and "Traceback" not in done.stderr


CLASSES = ("Gilt-Head Bream", "Hourse Mackerel", "Trout")


@pytest.fixture(scope="module")
def archive_run(tmp_path_factory, train_tiny):
    """A run on a small archive: ``.root``, ``.checkpoint``, ``.truth`` (photographs) and ``.splits`` (of them)."""
    root = tmp_path_factory.mktemp("archive") / "download"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(generate, "CLASSES", {name: generate.CLASSES[name] for name in CLASSES})
        generate.make_sample(root, generate.Recipe(seed=3, photographs_per_kind=4, copies=2))
    done = train_tiny(root.parent, "data=fish", "split=photograph", "data.find_copies=true", data=root)
    assert done.returncode == 0, done.stderr
    (folder,) = (root.parent / "logs" / "train" / "runs").iterdir()
    with (root / "photographs.csv").open(newline="") as stream:
        done.truth = {row["path"]: row["photograph"] for row in csv.DictReader(stream)}
    with (folder / "split.csv").open(newline="") as stream:
        done.splits = {done.truth[row["path"]]: row["split"] for row in csv.DictReader(stream)}
    done.root, done.checkpoint = root, folder / "checkpoints" / "best.ckpt"
    return done


@pytest.mark.slow
@pytest.mark.parametrize("below", ["", "NA_Fish_Dataset"])
def test_originals_whose_copies_were_trained_on_are_excluded(tmp_path, archive_run, evaluated, capsys, below):
    data = ("data=fish_originals", f"data.root={archive_run.root / below}")
    found = evaluated(*data, ckpt=archive_run.checkpoint)
    originals = {path: name for path, name in archive_run.truth.items() if path.startswith("NA_Fish_Dataset/")}
    originals = {path: name for path, name in originals.items() if name in archive_run.splits}
    trained = {path for path, name in originals.items() if archive_run.splits[name] == "train"}
    assert len(originals) == 12 and len(trained) == 6
    prefix = "NA_Fish_Dataset/" if below else ""
    assert {prefix + path for path in found["left_out"]["images"]} == trained
    assert found["left_out"]["n"] == len(trained) and 0 <= found["left_out"]["accuracy"] <= 1
    assert found["test"]["n"] == found["test"]["photographs"] == 12 - len(trained)
    assert found["test"]["leaked_test_images"] == 0 and found["missing_training_images"] == 0
    assert f"excluded: {len(trained)} images that are copies of training images" in capsys.readouterr().out
    with (tmp_path / "out" / "test_predictions.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {prefix + row["path"] for row in rows} == set(originals) - trained
    assert {row["label"] for row in rows} == set(CLASSES)
    assert sum(int(row["correct"]) for row in rows) / len(rows) == pytest.approx(found["test"]["accuracy"])


@pytest.mark.slow
def test_missing_training_images_are_reported(tmp_path, archive_run, evaluated, capsys):
    shutil.copytree(archive_run.root / "NA_Fish_Dataset", tmp_path / "NA_Fish_Dataset")
    moved = archive_run.root.rename(archive_run.root.with_name("gone"))
    try:
        found = evaluated("data=fish_originals", f"data.root={tmp_path}", ckpt=archive_run.checkpoint)
    finally:
        moved.rename(archive_run.root)
    assert found["test"]["n"] == 12 and found["left_out"] is None
    assert found["missing_training_images"] == 2 * sum(split == "train" for split in archive_run.splits.values())
    assert f"warning: {found['missing_training_images']} training images no longer exist" in capsys.readouterr().out


@pytest.mark.slow
def test_moved_training_images_are_recognized_by_their_paths(archive_run, evaluated):
    moved = archive_run.root.rename(archive_run.root.with_name("moved"))
    try:
        found = evaluated("data=fish", f"data.root={moved}", ckpt=archive_run.checkpoint)
    finally:
        moved.rename(archive_run.root)
    splits = list(archive_run.splits.values())
    assert found["missing_training_images"] == 0
    assert found["test"]["n"] == 2 * sum(split != "train" for split in splits)


@pytest.mark.slow
def test_data_of_copies_of_training_images_only_are_an_error(tmp_path, archive_run, evaluated):
    trained = next(path for path, name in archive_run.truth.items() if archive_run.splits.get(name) == "train")
    (tmp_path / "other").mkdir()
    with Image.open(archive_run.root / trained) as image:
        for number, name in enumerate(CLASSES[:2]):
            (tmp_path / "other" / name).mkdir()
            image.rotate(90 * (number + 1), expand=True).save(tmp_path / "other" / name / "1.jpg", quality=90)
    with pytest.raises(UserError) as error:
        evaluated("data=folder", "data.root=other", ckpt=archive_run.checkpoint)
    assert "none of the 2 images in other is in that split" in str(error.value)
    assert "(2 are training images or their copies); to score all of them: subset=all" in str(error.value)


def test_split_of_a_table_is_kept(tmp_path, tiny_data, evaluated):
    lines = [
        "path,label,split",
        "class a/000.png,class a,train",
        "class b/001.png,class b,test",
        "class b/002.png,class b,",
    ]
    (tmp_path / "table.csv").write_text("\n".join(lines))
    shutil.copytree(tiny_data, tmp_path / "moved")
    for file in (tmp_path / "moved").rglob("*.png"):
        file.rename(file.with_name(f"new {file.name}"))
    table = (tmp_path / "table.csv").read_text().replace("/0", "/new 0")
    (tmp_path / "table.csv").write_text(table)
    data = ("data=folder", "data.find_copies=false", "data.root=moved", "data.catalog=table.csv")
    assert evaluated(*data)["test"]["n"] == 1


@pytest.fixture
def unknown_folder(tmp_path, trained, tiny_data, make_image):
    """Eight images of none of the classes, copies of an image of each split of the run, and a file that is no image."""
    for number in range(8):
        make_image(tmp_path / "unknown" / "deep" / f"{number}.png", (10 * number, 30, 20 * number), 7000 + number)
    with (trained.folder / "split.csv").open(newline="") as stream:
        known = {row["split"]: tiny_data / row["path"] for row in csv.DictReader(stream)}
    shutil.copy(known["train"], tmp_path / "unknown" / "copy.png")
    shutil.copy(known["val"], tmp_path / "unknown" / "same.png")
    with Image.open(known["test"]) as image:
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "unknown" / "flipped.png")
    (tmp_path / "unknown" / "text.png").write_text("not an image")
    return tmp_path / "unknown"


def test_unknown_images_are_told_from_the_classes_without_copies_of_the_run(
    tmp_path, unknown_folder, trained, evaluated, capsys
):
    stored = json.loads((trained.folder / "calibration.json").read_text())
    block = evaluated(f"unknown={unknown_folder}")["test"]["unknowns"]
    assert (block["n"], block["photographs"], block["excluded"], block["missing_images"]) == (8, 8, 3, 0)
    excluded = ("copy.png", "flipped.png", "same.png")
    assert sorted(block["excluded_images"]) == [str(unknown_folder / name) for name in excluded]
    assert block["unreadable_images"] == [str(unknown_folder / "text.png")]
    known, foreign = (Outputs.load(tmp_path / "out" / name) for name in ("logits.npz", "unknown_logits.npz"))
    assert foreign.paths.tolist() == [str(unknown_folder / "deep" / f"{number}.png") for number in range(8)]
    assert set(foreign.labels) == {-1} and set(foreign.splits) == {"unknown"}
    with np.load(trained.folder / "training_features.npz") as arrays:
        training = arrays["features"]
    scores = [
        {"energy": np.log(np.exp(logits).sum(1)), "max_logit": logits.max(1), "max_softmax": part.probabilities.max(1)}
        | {"feature_norm": np.linalg.norm(part.features.astype(float), axis=1)}
        | {"knn": neighbor_score(part.features, training)}
        for part, logits in ((part, part.logits.astype(float)) for part in (known, foreign))
    ]
    assert set(block["scores"]) == set(scores[0]) and block["best"] in block["scores"]
    for name, inside in scores[0].items():
        found, outside = block["scores"][name], scores[1][name]
        pairs = inside[:, None] - outside
        assert found["auroc"] == pytest.approx(((pairs > 0) + 0.5 * (pairs == 0)).mean())
        assert found["fpr95"] == pytest.approx((outside >= inside.min()).mean())  # of so few images, all are kept
        for key in ("auroc", "fpr95"):
            low, high = found[f"{key}_ci95"]
            assert -1e-9 < low <= found[key] + 1e-9 and found[key] - 1e-9 <= high < 1 + 1e-9
    assert (block["score"], block["threshold"]) == ("knn", stored["unknown"]["threshold"])
    assert block["rejected"] == (scores[1]["knn"] < block["threshold"]).mean()
    assert block["known_rejected"] == (scores[0]["knn"] < block["threshold"]).mean()
    lines = capsys.readouterr().out.splitlines()
    at = lines.index("unknown  8 images of 8 photographs")
    assert lines[at + 1].split()[:5] == ["excluded:", "3", "that", "are", "copies"]
    assert lines[at + 2].split()[:3] == ["excluded:", "1", "unreadable,"]
    assert [line.split()[0] for line in lines[at + 4 : at + 9]] == list(block["scores"])
    assert lines[at + 9].startswith(f"threshold     knn below {block['threshold']:.4g}: {block['rejected']:.1%} of")


def test_the_report_shows_the_unknown_images(tmp_path, unknown_folder, evaluated):
    block = evaluated(f"unknown={unknown_folder}", "report=true")["test"]["unknowns"]
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "How well each score separates 8 unknown images from images of the classes" in page
    assert all(f'<th scope="row">{name}' in page for name in block["scores"])
    assert "was not measured" not in page


def test_unknown_images_of_other_data_are_compared_with_both(
    tmp_path, unknown_folder, trained, tiny_data, evaluated, make_folder, make_image
):
    other = make_folder(tmp_path / "other", classes=["class a", "class b"], per_class=5, suffix=".bmp")
    for label, file in enumerate(sorted(other.rglob("*.bmp"))):
        make_image(file, (90, 20 * label, 50), 8000 + label)
    shutil.copy(next((other / "class a").iterdir()), unknown_folder / "tested.png")
    data = ("data=folder", f"data.root={other}", "data.find_copies=false")
    block = evaluated(*data, f"unknown={unknown_folder}")["test"]["unknowns"]
    assert (block["n"], block["excluded"]) == (8, 4)
    assert str(unknown_folder / "tested.png") in block["excluded_images"]
    assert "knn" in block["scores"]  # from the features that the run keeps
    tiny_data.rename(tiny_data.with_name("gone"))
    try:
        block = evaluated(*data, f"unknown={unknown_folder}")["test"]["unknowns"]
    finally:
        tiny_data.with_name("gone").rename(tiny_data)
    assert (block["n"], block["excluded"], block["missing_images"]) == (11, 1, 36) and "knn" in block["scores"]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ((), "unknown: some contains no image"),
        (("copy.png", "same.png"), "unknown: all 2 images are copies of images that the model was trained"),
        (("text.png",), "unknown: none of the 1 images could be read"),
    ],
)
def test_a_folder_without_unknown_images_is_a_short_error(tmp_path, unknown_folder, evaluated, names, words):
    (tmp_path / "some").mkdir()
    for name in names:
        shutil.copy(unknown_folder / name, tmp_path / "some" / name)
    with pytest.raises(UserError) as error:
        evaluated("unknown=some")
    assert str(error.value).startswith(words) and len(str(error.value).splitlines()) <= 5


def test_calibration_json_of_the_run_is_used_or_said_to_be_missing(tmp_path, trained, summary, evaluated, capsys):
    copy = tmp_path / "run" / "checkpoints" / "best.ckpt"
    copy.parent.mkdir(parents=True)
    shutil.copy(trained.folder / "checkpoints" / "best.ckpt", copy)
    shutil.copy(trained.folder / "training_features.npz", tmp_path / "run")
    stored = json.loads((trained.folder / "calibration.json").read_text())
    file = tmp_path / "run" / "calibration.json"
    file.write_text(json.dumps(stored | {"temperature": 3.0, "selective": {"threshold": 0.0, "target_error": 0.1}}))
    found = evaluated(ckpt=copy)["test"]
    assert found["calibration"]["temperature"] == 3.0 and found["calibration"]["after"]["nll"] > 0
    assert (found["selective"]["threshold"], found["selective"]["target_error"]) == (0, 0.1)
    assert found["selective"]["coverage"] == 1 and found["selective"]["error"] == pytest.approx(1 - found["accuracy"])
    assert "unknowns" not in found and "note: " not in capsys.readouterr().out
    file.unlink()
    found = evaluated(ckpt=copy)["test"]
    assert found["calibration"]["temperature"] is found["selective"]["threshold"] is None
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    assert notes == ["note: predictions are not calibrated: run/calibration.json not found"]
    file.write_text("{")
    with pytest.raises(UserError, match=r"run/calibration\.json is corrupt \(Expecting property name"):
        evaluated(ckpt=copy)


@pytest.fixture
def reported(tmp_path, trained, evaluated):
    """An evaluation with a report; its checkpoint is of no use afterwards."""
    evaluated("report=true", "subset=all", "evaluate.target_error=0.2")
    return tmp_path / "out"


def test_a_report_is_recomputed_without_the_model(reported, evaluated, monkeypatch, capsys):
    before = {name: (reported / name).read_text(encoding="utf-8") for name in ("report.html", "summary.json")}
    (reported / "report.html").unlink()
    monkeypatch.setattr("fish_lightning.models.checkpoint.load_checkpoint", None)
    evaluated("recompute=true", ckpt=reported)
    for name, text in before.items():
        assert (reported / name).read_text(encoding="utf-8") == text
    capsys.readouterr()
    changed = evaluated("recompute=true", "evaluate.target_error=0.6", ckpt=reported)["all"]["selective"]
    assert changed["target_error"] == 0.6 != json.loads(before["summary.json"])["all"]["selective"]["target_error"]
    printed = capsys.readouterr().out
    assert "recomputed   from logits.npz" in printed and "(target_error=0.6)" in printed
    assert "at most 60.0%" in (reported / "report.html").read_text(encoding="utf-8")


def test_another_target_error_chooses_the_threshold_on_the_validation_images_of_the_run(
    tmp_path, trained, evaluated, capsys
):
    stored = json.loads((trained.folder / "calibration.json").read_text())["selective"]
    assert (stored["target_error"], stored["threshold"], stored["candidates"]) == (0.05, None, 2)  # two epochs
    shutil.copytree(trained.folder, tmp_path / "run")
    outputs = Outputs.load(tmp_path / "run" / "logits.npz")
    outputs.logits[np.arange(len(outputs)), outputs.labels] += 50 * (outputs.splits == "val")  # all three are right
    outputs.save(tmp_path / "run" / "logits.npz")
    found = evaluated("evaluate.target_error=0.8", ckpt="run")["test"]["selective"]
    assert (found["target_error"], found["threshold"], found["coverage"]) == (0.8, 0, 1)
    for target, threshold in ((0.02, None), (0.8, 0)):
        overrides = ("recompute=true", f"evaluate.target_error={target}")
        found = evaluated(*overrides, ckpt=tmp_path / "out")["test"]["selective"]
        assert (found["target_error"], found["threshold"]) == (target, threshold)
        assert f"(target_error={target})" in capsys.readouterr().out


def test_without_validation_images_another_target_error_is_refused(tmp_path, trained, evaluated):
    shutil.copytree(trained.folder, tmp_path / "run")
    (tmp_path / "run" / "logits.npz").unlink()
    for words in ("no validation images in run/logits.npz", "the model has no calibration.json"):
        with pytest.raises(UserError) as error:
            evaluated("evaluate.target_error=0.1", ckpt="run")
        assert str(error.value).startswith(f"evaluate.target_error=0.1: {words}")
        assert len(str(error.value).splitlines()) == 2
        (tmp_path / "run" / "calibration.json").unlink(missing_ok=True)


def test_calibration_and_abstention_are_recomputed_of_an_evaluation_without_a_report(tmp_path, evaluated, capsys):
    before = evaluated()
    capsys.readouterr()
    assert evaluated("recompute=true", ckpt=tmp_path / "out") == before
    assert "report       none: the run was made with report=false" in capsys.readouterr().out
    assert not (tmp_path / "out" / "report.html").exists()


def test_the_checkpoint_of_a_run_folder_is_recorded(tmp_path, trained, evaluated):
    found = evaluated(ckpt=trained.folder)
    assert found["checkpoint"] == str(trained.folder / "checkpoints" / "best.ckpt")
    (fold,) = load_run("a", tmp_path / "out").folds
    assert len(fold.trained) == json.loads((trained.folder / "summary.json").read_text())["images"]["train"]


def test_what_cannot_be_recomputed_is_said(reported, evaluated):
    with pytest.raises(UserError, match="recompute=true loads no model"):
        evaluated("recompute=true", "unknown=photos", ckpt=reported)
    file = reported / "report_inputs.npz"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match=r"report_inputs\.npz is corrupt or incomplete"):
        evaluated("recompute=true", ckpt=reported)
    file.unlink()
    with pytest.raises(UserError, match="an earlier version wrote that folder"):
        evaluated("recompute=true", ckpt=reported)
