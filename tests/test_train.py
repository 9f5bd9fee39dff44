"""``python -m fish_lightning.train`` as a user runs it: what it leaves behind, what can be chosen, what it refuses."""

import os
import pickle
import re

import pytest
from helpers import SHORT, TINY, checkpoint_of, is_short_error, rows_of, run_folder, same, summary_of
from PIL import Image


def test_a_run_leaves_every_file_of_the_contract(trained):
    for name in ("loss", "accuracy", "confusion_matrix", "predictions"):
        with Image.open(trained.folder / "plots" / f"{name}.png") as picture:
            assert picture.format == "PNG"
            assert min(picture.size) > 200
    for name in ("best.ckpt", "last.ckpt"):
        assert (trained.folder / "checkpoints" / name).is_file()
    for name in ("metrics.csv", "split.csv", "test_predictions.csv", "summary.json", ".hydra/config.yaml"):
        assert (trained.folder / name).is_file()
    assert list(trained.folder.glob("events.out.tfevents*"))
    assert not list(trained.folder.rglob(".*.png"))  # no temporary file is left
    assert not (trained.folder / "report.html").exists()  # report=false


def test_summary_agrees_with_the_files_beside_it(trained):
    summary = summary_of(trained.folder)
    test, predictions = summary["test"], rows_of(trained.folder / "test_predictions.csv")
    assert list(predictions[0])[:4] == ["path", "label", "prediction", "probability"]
    correct = sum(row["label"] == row["prediction"] for row in predictions)
    assert test["n"] == len(predictions) == 6  # 15 % of 36, rounded up
    assert test["accuracy"] == correct / 6
    low, high = test["accuracy_ci95"]
    assert 0 <= low <= test["accuracy"] <= high <= 1
    assert sum(map(sum, test["confusion_matrix"])) == 6
    assert sum(test["confusion_matrix"][i][i] for i in range(3)) == correct
    assert list(test["per_class"]) == summary["classes"] == ["class a", "class b", "class c"]
    split = [row["split"] for row in rows_of(trained.folder / "split.csv")]
    assert summary["images"] == {name: split.count(name) for name in ("train", "val", "test")}
    assert summary["images"] == {"train": 27, "val": 3, "test": 6}
    assert (summary["seed"], summary["split"], summary["weights"]) == (42, "random", None)
    assert summary["seconds"] > 0
    assert summary["train_images_per_second"] > 0
    assert summary["checkpoint"] == str(trained.folder / "checkpoints" / "best.ckpt")


def test_metrics_contain_the_validation_before_training_and_the_rate_of_each_step(trained):
    rows = rows_of(trained.folder / "metrics.csv")
    validations = [row for row in rows if row["val/accuracy"]]
    assert len(validations) == 3  # before training and after each of two epochs
    assert validations[0]["step"] == "0"
    rates = [float(row["lr-Adam"]) for row in rows if row["lr-Adam"]]
    assert len(rates) == 14  # 27 images in batches of 4: 7 steps an epoch
    assert rates[0] == pytest.approx(0.002 / 25)
    assert max(rates) == pytest.approx(0.002, rel=0.05)


def test_the_best_checkpoint_is_the_epoch_of_the_best_validation(trained):
    rows = [row for row in rows_of(trained.folder / "metrics.csv") if row["val/accuracy"]][1:]
    best = max(range(2), key=lambda i: (float(rows[i]["val/accuracy"]), -float(rows[i]["val/loss"])))
    summary = summary_of(trained.folder)
    assert summary["best_epoch"] == best + 1
    assert summary["val"]["accuracy"] == pytest.approx(float(rows[best]["val/accuracy"]))
    assert checkpoint_of(trained.folder, "best.ckpt")["epoch"] == best


def test_the_screen_shows_one_line_per_epoch_and_the_results(trained):
    lines = [line for line in trained.stdout.splitlines() if not line.startswith("decoding ")]  # by whoever is first
    assert re.fullmatch(r"before training +val loss \d+\.\d{4}  val accuracy +\d+\.\d\d%", lines[4])
    for epoch in (1, 2):
        pattern = rf"epoch {epoch}/2 +lr \S+  train loss \d\.\d+ +val loss \S+  val accuracy +\S+%  +\d+\.\d s"
        assert sum(bool(re.fullmatch(pattern, line)) for line in lines) == 1, trained.stdout
    folder = trained.folder.relative_to(trained.cwd)
    assert f"tensorboard  tensorboard --logdir {folder}" in lines
    assert f"run folder   {folder}" in lines
    assert any(re.match(r"test accuracy  \d+\.\d\d%   95% CI \S+% to \S+%", line) for line in lines)
    assert trained.stderr == ""


def test_any_trainer_argument_and_early_stopping_can_be_chosen(tmp_path, train_tiny):
    stopping = ("callbacks=early_stopping", *(f"callbacks.early_stopping.{x}" for x in ("patience=1", "min_delta=100")))
    limits = ("trainer.max_epochs=9", "trainer.limit_train_batches=2")
    done = train_tiny(tmp_path, *limits, *stopping, *SHORT)
    assert done.returncode == 0, done.stderr
    summary = summary_of(run_folder(tmp_path))
    assert summary["epochs"] == 2  # the first sets the mark, the second does not improve on it
    assert summary["test"] == {}
    rates = [row for row in rows_of(run_folder(tmp_path) / "metrics.csv") if row["lr-Adam"]]
    assert len(rates) == 4  # two batches an epoch


def test_a_split_file_repeats_the_split_of_another_run(tmp_path, trained, train_tiny):
    replay = ("split=file", f"split.path={trained.folder / 'split.csv'}", "seed=7", "trainer.max_epochs=1", *SHORT)
    done = train_tiny(tmp_path, *replay)
    assert done.returncode == 0, done.stderr
    assert (run_folder(tmp_path) / "split.csv").read_text() == (trained.folder / "split.csv").read_text()


@pytest.mark.slow
def test_the_same_config_gives_the_same_weights_with_and_without_workers(tmp_path, trained, train_tiny):
    assert train_tiny(tmp_path, "data.num_workers=2", *SHORT).returncode == 0
    ours, theirs = (checkpoint_of(folder)["state_dict"] for folder in (run_folder(tmp_path), trained.folder))
    assert same(ours, theirs)


def test_two_runs_started_at_the_same_time_have_their_own_folders(tmp_path, start, tiny_data):
    short = ("trainer.fast_dev_run=true", "callbacks.best=null", *SHORT)
    both = [start("train", *TINY, f"data.root={tiny_data}", *short, cwd=tmp_path) for _ in range(2)]
    for program in both:
        done = program.communicate()
        assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "logs" / "train" / "runs").iterdir())) == 2


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_named(tmp_path, damaged, train_tiny, workers):
    done = train_tiny(tmp_path, f"data.num_workers={workers}", "data.cache=off", *SHORT, data=damaged)
    assert is_short_error(done, "class ", ".png: ", "data.on_error=skip")
    assert not (run_folder(tmp_path) / "summary.json").exists()


def test_unreadable_images_are_skipped_and_counted(tmp_path, damaged, train_tiny):
    done = train_tiny(tmp_path, "data.on_error=skip", "trainer.max_epochs=1", "validate_first=false", data=damaged)
    assert done.returncode == 0, done.stderr
    assert summary_of(run_folder(tmp_path))["unreadable_images"] == ["class a/003.png", "class b/004.png"]
    assert "2 unreadable images" in done.stdout


def empty_class(root):
    (root / "class d").mkdir()


def no_images(root):
    for file in root.rglob("*.png"):
        file.unlink()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [(empty_class, ("class folder without an image: class d",)), (no_images, ("no images in ", "/<class>/<image>"))],
)
def test_data_that_cannot_be_trained_on_is_a_short_error(tmp_path, make_folder, train_tiny, spoil, words):
    root = make_folder(tmp_path / "data", classes=2, per_class=3)
    spoil(root)
    assert is_short_error(train_tiny(tmp_path, data=root), *words)


class Malice:
    """A pickle of it would create a folder when it is loaded."""

    def __reduce__(self):
        return os.mkdir, ("executed",)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data.root=nowhere"], ("data.root: nowhere does not exist", "data.root=DIR")),
        (["model.name=resnet35"], ("model.name: torchvision has no classification model 'resnet35'", "resnet34")),
        (["model.weights=absent.pth"], ("model.weights: no file absent.pth",)),
        (["ckpt=absent.ckpt"], ("ckpt: no file absent.ckpt",)),
        (["ckpt=empty"], ("ckpt: no file empty/checkpoints/last.ckpt",)),
        (["ckpt=last"], ("ckpt=last: logs/train/runs/", "has no checkpoint", "hydra.run.dir=RUN ckpt=last")),
        (["ckpt=malice.ckpt"], ("ckpt: malice.ckpt is not a checkpoint",)),
        (["ckpt=best.ckpt"], ("ckpt: best.ckpt contains weights only", "last.ckpt")),
        (["trainer.accelerator=tpu"], ("trainer: ",)),
        (["trainer.val_check_interval=20"], ("trainer: `val_check_interval` (20) must be less than or equal",)),
    ],
)
def test_a_setting_that_cannot_be_used_is_a_short_error(tmp_path, trained, train_tiny, overrides, words):
    (tmp_path / "empty").mkdir()
    (tmp_path / "malice.ckpt").write_bytes(pickle.dumps(Malice()))
    (tmp_path / "best.ckpt").write_bytes((trained.folder / "checkpoints" / "best.ckpt").read_bytes())
    assert is_short_error(train_tiny(tmp_path, "trainer.max_epochs=1", *SHORT, *overrides), *words)
    assert not (tmp_path / "executed").exists()
    assert not list((tmp_path / "empty").iterdir()) and not (tmp_path / ".hydra").exists()
    assert not list(tmp_path.rglob("summary.json"))


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_weights_of_another_type_can_be_trained(tmp_path, train_tiny, precision):
    done = train_tiny(tmp_path, f"trainer.precision={precision}", "trainer.max_epochs=1", "validate_first=false")
    assert done.returncode == 0, done.stderr
    assert summary_of(run_folder(tmp_path))["test"]["n"] == 6


@pytest.mark.slow
def test_imagenet_weights_without_a_network_are_an_error_that_names_both_other_choices(tmp_path, train_tiny):
    offline = {"TORCH_HOME": str(tmp_path / "hub"), "https_proxy": "http://127.0.0.1:9"}
    done = train_tiny(tmp_path, "model.weights=imagenet", env=offline)
    assert is_short_error(done, "model.weights=imagenet: ", "model.weights=FILE.pth", "model.weights=null")


def test_a_trial_run_without_checkpoints_names_none(tmp_path, train_tiny):
    done = train_tiny(tmp_path, "trainer.fast_dev_run=true", "validate_first=false")
    assert done.returncode == 0, done.stderr
    assert "no checkpoint was kept" in done.stdout.splitlines()
    assert "tensorboard --logdir" in done.stdout
    assert "ckpt=" not in done.stdout and "None" not in done.stdout
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.slow
def test_the_default_run_has_90_percent_accuracy_on_unseen_photographs(tmp_path, run):
    """With a quarter of its pixels, two thirds of its photographs and of its epochs, which is a ninth of the time."""
    short = (
        "transforms.height=48",
        "transforms.width=64",
        "trainer.max_epochs=8",
        "data.source.photographs_per_kind=20",
    )
    done = run("train", *short, cwd=tmp_path, timeout=900)
    assert done.returncode == 0, done.stderr
    folder = run_folder(tmp_path)
    summary = summary_of(folder)
    assert (summary["split"], summary["leaked_test_images"], summary["test"]["n"]) == ("photograph", 0, 108)
    assert summary["test"]["accuracy"] >= 0.9
    assert {"report.html", "calibration.json", "logits.npz"} <= {file.name for file in folder.iterdir()}
    audit = summary["test"]["audit"]  # that it exposes a shortcut: tests/report/test_shortcut.py
    assert audit["looks_at"] == audit["training"]["looks_at"] == audit["tested"]["looks_at"] == "object"
    assert audit["verdict"].startswith("The model looks at the object. Training images: the predictions follow")
    assert min(audit[part]["follows_object"]["value"] for part in ("tested", "training")) > 2 / 3
    assert audit["training"]["other_background"]["value"] > audit["training"]["accuracy"]["value"] / 2
