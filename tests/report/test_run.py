"""The files and tables of a run: ``summary.json`` agrees with the other files and with the closing table."""

import contextlib
import csv
import io
import json
import shutil
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from fish_lightning.compat import quiet_lightning
from fish_lightning.evaluation.outputs import Outputs
from fish_lightning.evaluation.scores import wilson_interval
from fish_lightning.report import run as report
from fish_lightning.report.tables import closing_table, evaluation_table, score_table
from fish_lightning.training import summary as summaries
from fish_lightning.training.best_checkpoint import BestCheckpoint
from fish_lightning.training.history import History
from fish_lightning.training.summary import LIMITS

CONTRACT = {
    "test",
    "val",
    "best_epoch",
    "seconds",
    "train_images_per_second",
    "seed",
    "split",
    "classes",
    "weights",
    "checkpoint",
}


@pytest.fixture(scope="module")
def run_folder(make_folder, make_data, make_model, tmp_path_factory):
    """A small run from first validation to closing table: (folder, history, printed text)."""
    folder = tmp_path_factory.mktemp("run")
    data = make_data(make_folder(folder / "photos", 3, 10))
    model = make_model(data)
    history = History()
    best = BestCheckpoint(
        dirpath=folder / "checkpoints", filename="best", monitor="val/accuracy", save_weights_only=True
    )
    quiet_lightning()
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=3,
        logger=False,
        callbacks=[best, history],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )
    cfg = OmegaConf.create(
        {"test": True, "report": True, "evaluate": {"target_error": 0.05}, "trainer": dict.fromkeys(LIMITS), "data": {}}
    )
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        report.write_start(folder, trainer, model, data)
        trainer.validate(model, datamodule=data, verbose=False)
        trainer.fit(model, datamodule=data)
        trainer.test(model, datamodule=data, ckpt_path=best.best_model_path, verbose=False, weights_only=True)
        summary = summaries.summarize_run(trainer, model, data, cfg)
        outputs = summaries.test_and_val_outputs(trainer, model, data)
        report.write_run(folder, summary, summaries.history_rows(trainer), outputs, model, data, cfg)
    return folder, history, printed.getvalue()


@pytest.fixture(scope="module")
def summary(run_folder):
    return json.loads((run_folder[0] / "summary.json").read_text())


def test_summary_has_every_key_of_the_contract(summary):
    assert set(summary) >= CONTRACT
    assert set(summary["test"]) >= {"accuracy", "accuracy_ci95", "macro_f1", "loss", "n", "per_class"}
    assert set(summary["val"]) >= {"accuracy", "macro_f1", "loss", "n"}


def test_the_report_and_the_calibration_are_written(summary, run_folder):
    page = (run_folder[0] / "report.html").read_text(encoding="utf-8")
    for words in (
        "Confusion matrix",
        "Calibration",
        "Abstention",
        "of 6 test images",
        "have no masks of their objects",
    ):
        assert words in page
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")
    stored = json.loads((run_folder[0] / "calibration.json").read_text())
    assert stored["classes"] == summary["classes"] and stored["temperature"] > 0
    assert stored["selective"]["candidates"] == summary["compared_checkpoints"] == 3
    assert stored["unknown"]["score"] == "knn"
    with np.load(run_folder[0] / stored["unknown"]["features"]) as arrays:
        assert arrays["features"].shape == (19, 1024)  # of all training images
    assert f"checkpoint: epoch {summary['best_epoch']}<" in page
    for name in ("fish_lightning", "torchvision", "device", "precision", "training"):
        assert f'<th scope="row">{name}<' in page
    assert set(summary["test"]["calibration"]) >= {"ece", "nll", "brier", "temperature", "after"}
    assert set(summary["test"]["selective"]) >= {"aurc", "target_error", "threshold", "coverage", "error"}


def test_a_run_is_recomputed_from_its_logits(run_folder, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run_folder[0], folder)
    names = ("report.html", "calibration.json", "summary.json")
    before = {name: (folder / name).read_text(encoding="utf-8") for name in names}
    for name in names[:2]:
        (folder / name).unlink()
    assert report.recompute(folder)[0] == "test"
    assert {name: (folder / name).read_text(encoding="utf-8") for name in names} == before
    assert (folder / "report_inputs.npz").stat().st_size < 100_000


def test_logits_of_test_and_validation_images_are_kept(run_folder):
    outputs = Outputs.load(run_folder[0] / "logits.npz")
    assert (len(outputs.subset("test")), len(outputs.subset("val")), outputs.features.shape[1]) == (6, 5, 1024)
    with (run_folder[0] / "test_predictions.csv").open(newline="", encoding="utf-8") as stream:
        rows = {row["path"]: row for row in csv.DictReader(stream)}
    tested = outputs.subset("test")
    for path, pred in zip(tested.paths, tested.preds, strict=True):
        assert rows[path]["prediction"] == outputs.classes[pred]


def test_summary_describes_the_run(summary, run_folder):
    assert (summary["seed"], summary["split"], summary["weights"]) == (42, "random", None)
    assert summary["classes"] == ["class a", "class b", "class c"]
    assert summary["images"] == {"train": 19, "val": 5, "test": 6}
    assert (summary["test"]["n"], summary["val"]["n"], summary["epochs"]) == (6, 5, 3)
    assert summary["checkpoint"] == str(run_folder[0] / "checkpoints" / "best.ckpt")
    assert summary["train_images_per_second"] > 0 and summary["seconds"] > 0
    assert summary["unreadable_images"] == []


@pytest.mark.parametrize(
    ("settings", "compared"),
    [
        ({}, 6),
        ({"current_epoch": 2}, 6),  # stopped early: when depends on the validation images too
        ({"max_epochs": -1, "current_epoch": 9}, 9),
        ({"val_check_batch": 4}, 18),
        ({"check_val_every_n_epoch": 3}, 2),
        ({"callbacks": []}, 1),  # the last weights, whatever the validation says
        ({"monitor": "step"}, 1),  # likewise, in a checkpoint
    ],
    ids=str,
)
def test_checkpoints_that_the_validation_chooses_among_are_counted(tmp_path, settings, compared):
    monitor = settings.get("monitor", "val/accuracy")
    best = BestCheckpoint(dirpath=tmp_path, filename="best", monitor=monitor)
    trainer = {"callbacks": [best], "max_epochs": 6, "current_epoch": 6, "num_training_batches": 10}
    trainer |= {"val_check_batch": 10, "check_val_every_n_epoch": 1}
    assert summaries.compared_checkpoints(SimpleNamespace(**(trainer | settings))) == compared


def test_validation_scores_are_those_of_the_best_epoch(summary, run_folder):
    rows = run_folder[1].rows
    best = max(rows[1:], key=lambda row: (row["val_accuracy"], -row["val_loss"]))
    assert summary["best_epoch"] == best["epoch"]
    assert [row["epoch"] for row in rows] == [0, 1, 2, 3]
    for key in ("accuracy", "macro_f1", "loss"):
        assert summary["val"][key] == best[f"val_{key}"]


def test_test_scores_can_be_computed_from_the_predictions(summary, run_folder):
    with (run_folder[0] / "test_predictions.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    with (run_folder[0] / "split.csv").open(newline="", encoding="utf-8") as stream:
        tested = {row["path"]: row["label"] for row in csv.DictReader(stream) if row["split"] == "test"}
    assert {row["path"]: row["label"] for row in rows} == tested and len(rows) == 6
    correct = [row["label"] == row["prediction"] for row in rows]
    assert [int(row["correct"]) for row in rows] == [int(value) for value in correct]
    assert summary["test"]["accuracy"] == sum(correct) / 6
    assert summary["test"]["accuracy_ci95"] == pytest.approx(wilson_interval(sum(correct), 6))
    f1 = []
    for name in summary["classes"]:
        correct_ones = sum(row["label"] == row["prediction"] == name for row in rows)
        named = sum(row["prediction"] == name for row in rows) + sum(row["label"] == name for row in rows)
        f1.append(2 * correct_ones / named)
    assert summary["test"]["macro_f1"] == pytest.approx(np.mean(f1), abs=1e-6)
    assert np.trace(summary["test"]["confusion_matrix"]) == sum(correct)


def test_tested_weights_are_those_of_the_best_checkpoint(summary, run_folder):
    checkpoint = torch.load(run_folder[0] / "checkpoints" / "best.ckpt", weights_only=True)
    assert checkpoint["epoch"] == summary["best_epoch"] - 1


def test_plots_are_images(run_folder):
    plots = run_folder[0] / "plots"
    assert {file.name for file in plots.iterdir()} == {
        "loss.png",
        "accuracy.png",
        "confusion_matrix.png",
        "predictions.png",
    }
    for file in plots.iterdir():
        pixels = np.asarray(Image.open(file).convert("L"))
        assert min(pixels.shape) >= 200 and pixels.std() > 5, file


def test_start_prints_model_data_split_and_folder(run_folder):
    lines = run_folder[2].splitlines()
    assert lines[0].startswith("model  shufflenet_v2_x0_5, random weights; cpu, 32-true")
    assert lines[1].startswith("data   30 images of 3 classes in ")
    assert lines[2] == "split  random, seed 42: 19 train, 5 val, 6 test"
    assert lines[3] == f"run    {run_folder[0]}"


def test_closing_table_has_scores_folders_and_next_commands(run_folder, summary):
    text, test = run_folder[2], summary["test"]
    low, high = test["accuracy_ci95"]
    assert f"test accuracy  {test['accuracy']:.2%}   95% CI {low:.1%} to {high:.1%}" in text
    assert f"{6 - round(6 * test['accuracy'])} of 6 wrong; split=random" in text
    for name, scores in test["per_class"].items():
        precision = "-" if scores["precision"] is None else f"{scores['precision']:.1%}"
        assert f"{name}  {precision:>9}  {scores['recall']:6.1%}       {scores['n']}" in text
    assert f"best epoch   {summary['best_epoch']} by validation accuracy" in text
    assert f"run folder   {run_folder[0]}" in text
    assert f"tensorboard --logdir {run_folder[0]}" in text
    assert f"python -m fish_lightning.predict ckpt={summary['checkpoint']} input=" in text


def test_undefined_scores_are_dashes_and_the_only_class_predicted_is_named(summary):
    none, half = {"precision": None, "recall": None, "n": 0}, {"precision": 0.5, "recall": 1.0, "n": 3}
    missed = {"precision": None, "recall": 0.0, "n": 3}
    table = score_table(summary["test"] | {"per_class": {"a": half, "b": missed, "c": none}}, "random").splitlines()
    assert [line.split() for line in table[-3:]] == [
        ["a", "50.0%", "100.0%", "3"],
        ["b", "-", "0.0%", "3"],
        ["c", "-", "-", "0"],
    ]
    warning = "warning: the model predicts the same class for every image: a"
    assert warning in table
    others = {"a": half, "b": missed | {"precision": 0.0}}, {"a": half, "b": none}
    assert all(warning not in score_table(summary["test"] | {"per_class": of}, "random") for of in others)


def test_a_part_of_the_test_images_is_not_taken_for_all(summary):
    assert summary["test"]["n"] == summary["test"]["images_in_split"] == 6
    assert "tested" not in score_table(summary["test"], "random")
    assert "tested 8 of 144 images" in score_table(summary["test"] | {"n": 8, "images_in_split": 144}, "random")


def test_summary_is_valid_json_whatever_was_measured(tmp_path):
    report.write_summary(tmp_path, {"val": {"loss": float("nan"), "n": 3}, "rows": [(float("inf"), 1.5)]})
    assert json.loads((tmp_path / "summary.json").read_text()) == {
        "val": {"loss": None, "n": 3},
        "rows": [[None, 1.5]],
    }


def test_closing_table_counts_unreadable_images(tmp_path, summary):
    text = closing_table(tmp_path, summary | {"unreadable_images": ["a/1.png", "b/2.png"]})
    assert "excluded: 2 unreadable images, listed in summary.json" in text


def test_closing_table_says_that_the_last_epoch_was_kept(tmp_path, summary):
    text = closing_table(tmp_path, summary | {"best_by": "step", "best_epoch": 3})
    assert "last epoch   3 was kept (callbacks.best.monitor=step)" in text and "best epoch" not in text


def test_closing_table_predicts_with_the_views_of_the_test(tmp_path, summary):
    assert summary["tta"] is None
    text = closing_table(tmp_path, summary | {"tta": "turns"})
    assert f"python -m fish_lightning.predict ckpt={summary['checkpoint']} tta=turns input=FOLDER\n" in text


def test_closing_table_of_a_run_without_a_test_says_so(tmp_path, summary):
    text = closing_table(tmp_path, summary | {"test": {}})
    assert text.startswith("not tested (test=false)") and "test accuracy" not in text


def test_a_run_without_a_test_reports_its_validation(tmp_path, train_tiny):
    run = train_tiny(tmp_path, "test=false", "report=true", "hydra.run.dir=run")
    assert run.returncode == 0, run.stderr
    folder = tmp_path / "run"
    page = (folder / "report.html").read_text(encoding="utf-8")
    summary = json.loads((folder / "summary.json").read_text())
    assert f"of {summary['val']['n']} validation images" in page
    assert "so the figures after scaling are optimistic" in page
    assert "not tested (test=false)" in run.stdout and "report       " in run.stdout
    outputs = Outputs.load(folder / "logits.npz")
    assert set(outputs.splits) == {"val"} and len(outputs) == summary["val"]["n"]
    # of the best checkpoint, not of the last epoch's weights
    assert outputs.correct.mean() == pytest.approx(summary["val"]["accuracy"])
    assert summary["test"] == {} and summary["val"]["calibration"]["temperature"] > 0
    assert json.loads((folder / "calibration.json").read_text())["classes"] == summary["classes"]
    assert not (folder / "test_predictions.csv").exists()


def test_a_run_without_a_test_whose_validation_cannot_be_reported_says_why(
    tmp_path, capsys, run_folder, summary, make_data, make_model
):
    outputs = Outputs.load(run_folder[0] / "logits.npz").subset("val")
    outputs.logits[:2] = np.nan
    data = make_data(run_folder[0] / "photos")
    cfg = OmegaConf.create({"report": True, "evaluate": {"target_error": 0.05}})
    report.write_run(tmp_path, summary | {"test": {}}, [], outputs, make_model(data), data, cfg)
    assert "no report: 2 of 5 images have NaN or infinite logits\n" in capsys.readouterr().out
    assert (tmp_path / "summary.json").is_file() and not (tmp_path / "report.html").exists()


def test_metrics_have_the_names_they_are_logged_with(summary):
    assert report.metrics(summary)["val/accuracy"] == summary["val"]["accuracy"]
    assert report.metrics(summary)["test/macro_f1"] == summary["test"]["macro_f1"]
    assert set(report.metrics(summary)) == {
        f"{stage}/{key}" for stage in ("val", "test") for key in ("accuracy", "macro_f1", "loss")
    }


def test_evaluation_table_names_the_subset(tmp_path, summary):
    text = evaluation_table(
        tmp_path, {"val": summary["test"], "split": "random", "data": "photos", "unreadable_images": []}, "val"
    )
    assert "split=random, subset=val" in text and "data     photos" in text and str(tmp_path) in text
