"""``python -m fish_lightning.train`` as a user runs it: what it leaves behind, how it stops, resumes and refuses."""

import csv
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import TINY
from PIL import Image


def rows_of(file):
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def run_folder(cwd):
    (folder,) = (cwd / "logs" / "train" / "runs").iterdir()
    return folder


def weights_of(checkpoint):
    return torch.load(checkpoint, weights_only=True)["state_dict"]


def same_weights(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def is_short_error(done, *words):
    """Exit code 1, one to five lines of ours with those words, no traceback, nothing half-written."""
    message = done.stderr.strip().splitlines()
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert 1 <= len(message) <= 5
    for word in words:
        assert word in done.stderr
    return True


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


def test_summary_agrees_with_the_files_beside_it(trained):
    summary = json.loads((trained.folder / "summary.json").read_text())
    test, predictions = summary["test"], rows_of(trained.folder / "test_predictions.csv")
    right = sum(int(row["correct"]) for row in predictions)
    assert test["n"] == len(predictions) == 6  # 15 % of 36, rounded up
    assert test["accuracy"] == right / 6
    low, high = test["accuracy_ci95"]
    assert 0 <= low <= test["accuracy"] <= high <= 1
    assert sum(map(sum, test["confusion_matrix"])) == 6
    assert sum(test["confusion_matrix"][i][i] for i in range(3)) == right
    assert list(test["per_class"]) == summary["classes"] == ["kind a", "kind b", "kind c"]
    split = [row["split"] for row in rows_of(trained.folder / "split.csv")]
    assert summary["images"] == {name: split.count(name) for name in ("train", "val", "test")}
    assert summary["images"] == {"train": 27, "val": 3, "test": 6}
    assert (summary["seed"], summary["split"], summary["weights"]) == (42, "random", None)
    assert summary["seconds"] > 0
    assert summary["train_images_per_second"] > 0
    assert summary["checkpoint"] == str(trained.folder / "checkpoints" / "best.ckpt")


def test_metrics_hold_the_row_before_training_and_the_rate_of_each_step(trained):
    rows = rows_of(trained.folder / "metrics.csv")
    validations = [row for row in rows if row["val/accuracy"]]
    assert len(validations) == 3  # before training and after each of two epochs
    assert validations[0]["step"] == "0"
    rates = [float(row["lr-Adam"]) for row in rows if row["lr-Adam"]]
    assert len(rates) == 14  # 27 images in batches of 4: 7 steps an epoch
    assert rates[0] == pytest.approx(0.002 / 25)
    assert max(rates) == pytest.approx(0.002, rel=0.05)


def test_best_checkpoint_is_the_epoch_of_the_best_validation(trained):
    rows = [row for row in rows_of(trained.folder / "metrics.csv") if row["val/accuracy"]][1:]
    best = max(range(2), key=lambda i: (float(rows[i]["val/accuracy"]), -float(rows[i]["val/loss"])))
    summary = json.loads((trained.folder / "summary.json").read_text())
    assert summary["best_epoch"] == best + 1
    assert summary["val"]["accuracy"] == pytest.approx(float(rows[best]["val/accuracy"]))
    checkpoint = torch.load(trained.folder / "checkpoints" / "best.ckpt", weights_only=True)
    assert checkpoint["epoch"] == best


def test_the_screen_shows_an_epoch_a_line_and_what_came_out(trained):
    lines = [line for line in trained.stdout.splitlines() if not line.startswith("decoding ")]  # by whoever is first
    assert re.fullmatch(r"before training +val loss \d+\.\d{4}  val accuracy +\d+\.\d\d %", lines[4])
    for epoch in (1, 2):
        pattern = rf"epoch {epoch}/2 +lr \S+  train loss \d\.\d+ +val loss \S+  val accuracy +\S+ %  +\d+\.\d s"
        assert sum(bool(re.fullmatch(pattern, line)) for line in lines) == 1, trained.stdout
    folder = trained.folder.relative_to(trained.cwd)
    assert f"tensorboard  tensorboard --logdir {folder}" in lines
    assert f"run folder   {folder}" in lines
    assert any(re.match(r"test accuracy  \d+\.\d\d%   95 % interval \S+% to \S+%", line) for line in lines)
    assert trained.stderr == ""


def test_any_trainer_argument_and_early_stopping_can_be_chosen(tmp_path, train_tiny):
    stopping = (
        "callbacks=early_stopping",
        "callbacks.early_stopping.patience=1",
        "callbacks.early_stopping.min_delta=100",
    )
    done = train_tiny(tmp_path, "trainer.max_epochs=9", *stopping, "trainer.limit_train_batches=2", "test=false")
    assert done.returncode == 0, done.stderr
    summary = json.loads((run_folder(tmp_path) / "summary.json").read_text())
    assert summary["epochs"] == 2  # the first sets the mark, the second does not pass it
    assert summary["test"] == {}
    rates = [row for row in rows_of(run_folder(tmp_path) / "metrics.csv") if row["lr-Adam"]]
    assert len(rates) == 4  # two batches an epoch


def test_a_split_file_replays_another_runs_split(tmp_path, trained, train_tiny):
    replay = (
        "split=file",
        f"split.path={trained.folder / 'split.csv'}",
        "seed=7",
        "trainer.max_epochs=1",
        "test=false",
    )
    done = train_tiny(tmp_path, *replay)
    assert done.returncode == 0, done.stderr
    assert (run_folder(tmp_path) / "split.csv").read_text() == (trained.folder / "split.csv").read_text()


def start(cwd, data, *overrides):
    command = [sys.executable, "-m", "fish_lightning.train", *TINY, f"data.root={data}", *overrides]
    return subprocess.Popen(
        command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code", "workers"), [(signal.SIGINT, 130, 0), (signal.SIGTERM, 143, 2)])
def test_a_stopped_run_goes_on_as_if_it_had_not_been_stopped(
    tmp_path, tiny_data, train_tiny, trained, number, code, workers
):
    slow = ("trainer.max_epochs=4", f"data.num_workers={workers}")
    process = start(tmp_path, tiny_data, *slow)
    for line in process.stdout:
        if line.startswith("epoch 2/"):
            break
    time.sleep(0.15)
    os.killpg(process.pid, number)  # the workers too, as a terminal or a cluster does
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == code
    assert f"stopped by {number.name} at step " in stderr
    last = run_folder(tmp_path) / "checkpoints" / "last.ckpt"
    assert f"ckpt={last.relative_to(tmp_path)}" in stderr
    assert "Traceback" not in stderr

    resumed = train_tiny(tmp_path, *slow, f"ckpt={last.relative_to(tmp_path)}")
    assert resumed.returncode == 0, resumed.stderr
    whole = tmp_path / "whole"
    whole.mkdir()
    assert train_tiny(whole, *slow).returncode == 0
    assert same_weights(weights_of(last), weights_of(run_folder(whole) / "checkpoints" / "last.ckpt"))
    steps = [row["step"] for row in rows_of(run_folder(tmp_path) / "metrics.csv") if row["lr-Adam"]]
    assert steps == [row["step"] for row in rows_of(run_folder(whole) / "metrics.csv") if row["lr-Adam"]]
    summary, other = (json.loads((run_folder(at) / "summary.json").read_text()) for at in (tmp_path, whole))
    assert summary["test"] == other["test"]
    assert summary["best_epoch"] == other["best_epoch"]


@pytest.mark.slow
def test_the_same_config_gives_the_same_weights_with_and_without_workers(tmp_path, trained, train_tiny):
    assert train_tiny(tmp_path, "data.num_workers=2").returncode == 0
    ours = weights_of(run_folder(tmp_path) / "checkpoints" / "last.ckpt")
    assert same_weights(ours, weights_of(trained.folder / "checkpoints" / "last.ckpt"))


def test_two_runs_started_at_once_have_folders_of_their_own(tmp_path, tiny_data):
    both = [start(tmp_path, tiny_data, "trainer.fast_dev_run=true", "callbacks.best=null") for _ in range(2)]
    for process in both:
        _, stderr = process.communicate(timeout=120)
        assert process.returncode == 0, stderr
    assert len(list((tmp_path / "logs" / "train" / "runs").iterdir())) == 2


@pytest.fixture
def damaged(tmp_path, make_folder):
    """Three kinds of twelve images, of which one is empty and one is cut short."""
    root = make_folder(tmp_path / "damaged", classes=3, per_class=12)
    (root / "kind a" / "003.png").write_bytes(b"")
    cut = root / "kind b" / "004.png"
    cut.write_bytes(cut.read_bytes()[:300])
    return root


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_named(tmp_path, damaged, train_tiny, workers):
    done = train_tiny(tmp_path, f"data.num_workers={workers}", data=damaged)
    assert is_short_error(done, "kind ", ".png: ", "data.on_error=skip")
    assert not (run_folder(tmp_path) / "summary.json").exists()


def test_unreadable_images_are_left_out_and_counted(tmp_path, damaged, train_tiny):
    done = train_tiny(tmp_path, "data.on_error=skip", "trainer.max_epochs=1", data=damaged)
    assert done.returncode == 0, done.stderr
    summary = json.loads((run_folder(tmp_path) / "summary.json").read_text())
    assert summary["unreadable_images"] == ["kind a/003.png", "kind b/004.png"]
    assert "left out: 2 unreadable images, named in summary.json" in done.stdout


class Malice:
    """A pickle of it would make a folder when it is loaded."""

    def __reduce__(self):
        return os.mkdir, ("executed",)


def empty_class(root):
    (root / "kind d").mkdir()


def no_images(root):
    for file in root.rglob("*.png"):
        file.unlink()


def two_images(root):
    for file in list(root.rglob("*.png"))[2:]:
        file.unlink()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (empty_class, ("class folder without an image: kind d",)),
        (no_images, ("no images in ", "/<class>/<image>")),
        (two_images, ("class folder without an image",)),
    ],
)
def test_data_that_does_not_allow_a_run_is_a_short_error(tmp_path, make_folder, train_tiny, spoil, words):
    root = make_folder(tmp_path / "data", classes=2, per_class=3)
    spoil(root)
    assert is_short_error(train_tiny(tmp_path, data=root), *words)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data.root=nowhere"], ("data.root: nowhere does not exist", "data.root=DIR")),
        (["model.name=resnet35"], ("model.name: torchvision has no classification model 'resnet35'", "resnet34")),
        (["model.weights=absent.pth"], ("model.weights: no file absent.pth", "imagenet, or null")),
        (["ckpt=absent.ckpt"], ("ckpt: no file absent.ckpt",)),
        (["ckpt="], ("ckpt= says nothing: name a run's folder",)),
        (["ckpt=1"], ("ckpt: no file 1",)),
        (["ckpt=empty"], ("ckpt: no file empty/checkpoints/last.ckpt",)),
        (["ckpt=last"], ("ckpt=last: logs/train/runs/", "has no checkpoint", "hydra.run.dir=RUN ckpt=last")),
        (["ckpt=text.ckpt"], ("ckpt: text.ckpt is not a checkpoint",)),
        (["ckpt=malice.ckpt"], ("ckpt: malice.ckpt is not a checkpoint",)),
        (["ckpt=best.ckpt"], ("ckpt: best.ckpt holds weights alone", "last.ckpt")),
        (["trainer.accelerator=tpu"], ("trainer: ",)),
        (["optimized_metric=test/beauty"], ("optimized_metric=test/beauty: this run measures val/accuracy, val/loss",)),
    ],
)
def test_a_wrong_setting_is_a_short_error(tmp_path, trained, train_tiny, overrides, words):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.ckpt").write_text("not a checkpoint\n")
    (tmp_path / "malice.ckpt").write_bytes(pickle.dumps(Malice()))
    (tmp_path / "best.ckpt").write_bytes((trained.folder / "checkpoints" / "best.ckpt").read_bytes())
    assert is_short_error(train_tiny(tmp_path, "trainer.max_epochs=1", *overrides), *words)
    assert not (tmp_path / "executed").exists()
    assert not list((tmp_path / "empty").iterdir()) and not (tmp_path / ".hydra").exists()


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_weights_of_another_type_train_too(tmp_path, train_tiny, precision):
    done = train_tiny(tmp_path, f"trainer.precision={precision}", "trainer.max_epochs=1")
    assert done.returncode == 0, done.stderr
    assert json.loads((run_folder(tmp_path) / "summary.json").read_text())["test"]["n"] == 6


@pytest.mark.slow
def test_a_run_that_early_stopping_ended_is_not_trained_on(tmp_path, train_tiny):
    stop = (
        "callbacks=early_stopping",
        "callbacks.early_stopping.patience=1",
        "callbacks.early_stopping.min_delta=100",
    )
    command = (tmp_path, *stop, "trainer.max_epochs=6", "hydra.run.dir=run")
    first = train_tiny(*command)
    assert first.returncode == 0 and "epoch 2/6" in first.stdout and "epoch 3/6" not in first.stdout, first.stderr
    before = json.loads((tmp_path / "run" / "summary.json").read_text())
    again = train_tiny(*command, "ckpt=last")
    assert again.returncode == 0 and "epoch 3/6" not in again.stdout, again.stderr
    after = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert all(after[key] == before[key] for key in ("test", "val", "epochs", "best_epoch"))


@pytest.mark.slow
def test_imagenet_weights_without_a_network_are_an_error_that_names_both_other_choices(tmp_path, train_tiny):
    offline = {"TORCH_HOME": str(tmp_path / "hub"), "https_proxy": "http://127.0.0.1:9"}
    done = train_tiny(tmp_path, "model.weights=imagenet", env=offline)
    assert is_short_error(done, "model.weights=imagenet: ", "model.weights=FILE.pth", "model.weights=null")


REFUSED = {
    "junk": ([], "is not a checkpoint"),
    "weights": ([], "holds weights alone"),
    "split": (["seed=5"], "the run began with other images or another split"),
    "network": (["model.name=squeezenet1_1"], "the run trains shufflenet_v2_x0_5, and this command says model.name="),
    "scheduler": (["scheduler=none"], "the run began with scheduler=onecycle, not constant\n"),
    "optimizer": (
        ["optimizer=sgd", "scheduler=cosine"],
        "the run began with optimizer=Adam, not SGD; scheduler=onecycle",
    ),
    "rate": (["optimizer.weight_decay=0.5"], "the run began with optimizer.weight_decay=0.0001, not 0.5\n"),
    "precision": (["trainer.precision=bf16-mixed"], "the run began with trainer.precision=32-true, not bf16-mixed\n"),
    "size": (["transforms.height=48"], "the run began with transforms.height=32, not 48; another transforms.train"),
    "resizing": (["callbacks=progressive"], "the run began with callbacks.progressive=None, not ProgressiveResize\n"),
    "epochs": (["trainer.max_epochs=3"], "made for 14 steps, and this command asks for 21"),
    "batch": (["data.batch_size=8"], "the run began with data.batch_size=4, not 8"),
}


@pytest.mark.parametrize("spoil", REFUSED)
def test_a_checkpoint_that_cannot_be_resumed_leaves_its_run_as_it_was(tmp_path, trained, train_tiny, spoil):
    run = shutil.copytree(trained.folder, tmp_path / "run")
    last, (overrides, words) = run / "checkpoints" / "last.ckpt", REFUSED[spoil]
    if spoil == "junk":
        last.write_text("junk")
    elif spoil == "weights":
        last = last.with_name("best.ckpt")
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    done = train_tiny(tmp_path, f"ckpt={last}", *overrides)
    assert is_short_error(done, "ckpt: ", words)
    assert [file for file in before if file.read_bytes() != before[file] and file.name != "train.log"] == []
    added = {file.relative_to(run) for file in run.rglob("*") if file.is_file()} - {f.relative_to(run) for f in before}
    assert all(file.parts[0] in (".hydra", "train.log") or "tfevents" in file.name for file in added)


@pytest.mark.slow
def test_the_default_run_passes_90_percent_on_photographs_it_has_not_seen(tmp_path, run):
    done = run("train", cwd=tmp_path, timeout=900)
    assert done.returncode == 0, done.stderr
    summary = json.loads((run_folder(tmp_path) / "summary.json").read_text())
    assert (summary["split"], summary["leaked_test_images"], summary["test"]["n"]) == ("photograph", 0, 144)
    assert summary["test"]["accuracy"] >= 0.9


def test_a_run_that_was_moved_goes_on_where_it_is_now(tmp_path, trained, train_tiny):
    copy = shutil.copytree(trained.folder, tmp_path / "run")
    best = (trained.folder / "checkpoints" / "best.ckpt").read_bytes()
    done = train_tiny(tmp_path, f"ckpt={copy / 'checkpoints' / 'last.ckpt'}")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    summary, former = (json.loads((at / "summary.json").read_text()) for at in (copy, trained.folder))
    assert summary["checkpoint"] == str(copy / "checkpoints" / "best.ckpt")
    assert (summary["best_epoch"], summary["val"], summary["test"]) == tuple(
        former[key] for key in ("best_epoch", "val", "test")
    )
    assert (trained.folder / "checkpoints" / "best.ckpt").read_bytes() == best
    assert rows_of(copy / "metrics.csv") == rows_of(trained.folder / "metrics.csv")
    assert (copy / ".hydra" / "overrides.yaml").read_text() == (
        trained.folder / ".hydra" / "overrides.yaml"
    ).read_text()
    (resumed,) = (copy / ".hydra").glob("resumed-*/overrides.yaml")
    assert "ckpt=" in resumed.read_text()


def test_a_constant_rate_can_go_on_for_more_epochs_but_not_for_fewer(tmp_path, train_tiny):
    short = ("scheduler=none", "test=false", "validate_first=false")
    assert train_tiny(tmp_path, *short).returncode == 0
    last = f"ckpt={run_folder(tmp_path) / 'checkpoints' / 'last.ckpt'}"
    done = train_tiny(tmp_path, *short, last, "trainer.max_epochs=3")
    assert done.returncode == 0, done.stderr
    assert json.loads((run_folder(tmp_path) / "summary.json").read_text())["epochs"] == 3
    assert is_short_error(train_tiny(tmp_path, *short, last, "trainer.max_epochs=1"), "max_epochs=1")


def test_unreadable_images_are_remembered_by_a_run_that_goes_on(tmp_path, damaged, train_tiny):
    skipping = ("data.on_error=skip", "test=false", "validate_first=false")
    assert train_tiny(tmp_path, *skipping, data=damaged).returncode == 0
    last = f"ckpt={run_folder(tmp_path) / 'checkpoints' / 'last.ckpt'}"
    done = train_tiny(tmp_path, *skipping, last, data=damaged)
    assert done.returncode == 0, done.stderr
    unreadable = json.loads((run_folder(tmp_path) / "summary.json").read_text())["unreadable_images"]
    assert unreadable == ["kind a/003.png", "kind b/004.png"]


def test_a_trial_run_without_checkpoints_names_none(tmp_path, train_tiny):
    done = train_tiny(tmp_path, "trainer.fast_dev_run=true")
    assert done.returncode == 0, done.stderr
    assert "no checkpoint was kept" in done.stdout.splitlines()
    assert "tensorboard --logdir" in done.stdout
    assert "ckpt=" not in done.stdout and "None" not in done.stdout
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.batch_size=0", ("data.batch_size=0: it is a whole number, 1 or more",)),
        ("data.batch_size=many", ("data.batch_size=many: ",)),
        ("optimizer.lr=-1", ("optimizer: ", "Invalid learning rate: -1", "optimizer.lr=-1")),
        ("optimizer.lr=abc", ("optimizer: ", "optimizer.lr=abc")),
        ("scheduler.pct_start=7", ("scheduler: ", "pct_start", "scheduler.pct_start=7")),
        ("trainer.max_epochs=many", ("trainer.max_epochs=many: it is a whole number, -1 or more",)),
        ("trainer.val_check_interval=20", ("trainer: `val_check_interval` (20) must be less than or equal",)),
        ("trainer.max_epochs=1.5", ("trainer.max_epochs=1.5: it is a whole number",)),
        ("on_nan=ignore", ("on_nan=ignore: it is stop or skip",)),
        ("callbacks.last.every_n_steps=0", ("callbacks.last.every_n_steps=0",)),
    ],
)
def test_a_value_that_cannot_be_is_a_short_error(tmp_path, train_tiny, override, words):
    assert is_short_error(train_tiny(tmp_path, override), *words)
    assert not list(tmp_path.rglob("summary.json"))
