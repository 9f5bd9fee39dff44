"""What is drawn or printed has a size that does not depend on the number of classes or files."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import measured
from PIL import Image
from synthetic import TEXTS
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fish_lightning.data.catalog import make_catalog
from fish_lightning.data.inspection import inspect
from fish_lightning.evaluation.analysis import analyze
from fish_lightning.evaluation.outputs import Outputs, Predictions
from fish_lightning.evaluation.scores import score_test
from fish_lightning.models.classifier import FishClassifier
from fish_lightning.predicting.rows import prediction_rows
from fish_lightning.report.data_report import data_table, write_data_report
from fish_lightning.report.predictions import Tally, prediction_table, write_contact_sheet, write_predictions
from fish_lightning.report.run import write_summary, write_test
from fish_lightning.report.run_report import write_report
from fish_lightning.report.tables import score_table
from fish_lightning.training.tensorboard import PR_CURVES, RunTensorBoardLogger, TensorBoardPictures

CLASSES, PER_CLASS = 1000, 3
LOGGED = {"test/macro_f1": torch.tensor(0.5), "test/loss": torch.tensor(0.5)}


@pytest.fixture(scope="module")
def thousand_classes(tmp_path_factory):
    """Catalog and predictions of 3,000 images of 1,000 classes, of which some 40 % are recognized."""
    rng, images = np.random.default_rng(0), CLASSES * PER_CLASS
    rows = [(f"{i % CLASSES:04}/{i}.png", f"class {i % CLASSES:04}", "", "test") for i in range(images)]
    catalog = make_catalog(tmp_path_factory.mktemp("photos"), rows)
    logits = rng.normal(size=(images, CLASSES)).astype(np.float32)
    logits[np.arange(images), catalog.labels] += 3
    return catalog, Predictions(np.arange(images), catalog.labels, logits, rng.normal(size=(images, 64)).astype("f2"))


def write_all(folder, catalog, predictions):
    """Write what a run writes after its test."""
    outputs = Outputs.of(predictions, catalog)
    scores = score_test(predictions, catalog, catalog.classes, LOGGED)
    write_test(folder, outputs, "test", catalog.root)
    write_report(folder / "report.html", analyze(outputs), TEXTS, lambda path: np.zeros((9, 9, 3), np.uint8))
    write_summary(folder, {"test": scores})
    score_table(scores, "random")
    model = FishClassifier(catalog.classes, "squeezenet1_1")
    arrays = (predictions.indices, predictions.labels, predictions.logits, predictions.features)
    model._tested = [arrays]
    trainer = SimpleNamespace(
        is_global_zero=True,
        loggers=[RunTensorBoardLogger(folder)],
        datamodule=SimpleNamespace(catalog=catalog),
        global_step=7,
        callback_metrics=LOGGED,
    )
    TensorBoardPictures().on_test_end(trainer, model)
    trainer.loggers[0].save()


def test_a_thousand_classes_end_no_run(thousand_classes, tmp_path, record_property):
    megabytes = measured(lambda: write_all(tmp_path, *thousand_classes))
    record_property("peak_MB", megabytes)
    print(f"1,000 classes, 3,000 images: peak {megabytes:.0f} MB above that before")
    assert megabytes < 1000
    sizes = {}
    for file in ("confusion_matrix", "predictions"):
        with Image.open(tmp_path / "plots" / f"{file}.png") as picture:
            sizes[file] = picture.size
    assert max(max(size) for size in sizes.values()) < 2000
    with (tmp_path / "confusion_matrix.csv").open() as stream:
        assert sum(1 for _ in stream) == CLASSES + 1  # the whole matrix
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["test"]["confusion_matrix"] is None and len(summary["test"]["per_class"]) == CLASSES
    assert (tmp_path / "report.html").stat().st_size < 3e6
    events = EventAccumulator(str(tmp_path), size_guidance={"images": 0, "tensors": 0}).Reload()
    assert set(events.Tags()["images"]) == {"test/confusion_matrix", "test/wrong", "test/correct"}
    assert len([tag for tag in events.Tags()["tensors"] if tag.startswith("test/class")]) == PR_CURVES


def test_table_of_many_classes_shows_those_with_the_lowest_recall(thousand_classes):
    catalog, predictions = thousand_classes
    scores = score_test(predictions, catalog, catalog.classes, LOGGED)
    lines = score_table(scores, "random").splitlines()
    assert len(lines) < 32 and max(map(len, lines)) <= 100
    assert lines[-1] == "20 of 1,000 classes, those with the lowest recall; all in summary.json"
    shown = [line.split()[1] for line in lines[-21:-1]]
    recalls = {name: score["recall"] for name, score in scores["per_class"].items()}
    assert [recalls[f"class {name}"] for name in shown] == sorted(recalls.values())[:20]


def predicted_rows(paths, logits, names, unreadable=()):
    errors = [f"{path}: an empty file" if i in unreadable else "" for i, path in enumerate(paths)]
    return prediction_rows(paths, errors, logits, logits, names)


@pytest.mark.parametrize("classes", [3, CLASSES])
def test_thousands_of_files_are_counted_for_each_of_twenty_classes(tmp_path, classes):
    files = 3000
    names = [f"class {i}" for i in range(classes)]
    logits = np.zeros((files, classes), np.float32)
    logits[np.arange(files), np.arange(files) % classes] = 5
    rows = predicted_rows([f"{'long' * 30}/{i:04}.png" for i in range(files)], logits, names, {5})
    tally = Tally(keep=6)
    write_predictions(tmp_path, tally.counted(iter(rows)))
    entries = json.loads((tmp_path / "predictions.json").read_text())
    assert [entry["path"] for entry in entries] == [row.path for row in rows]
    assert (tally.n, tally.unreadable, tally.first) == (files, 1, rows[:6])
    lines = tally.lines()
    assert lines[0].split() == ["class", "files"] and len(lines) <= 23
    if classes == 3:
        assert [line.split() for line in lines[1:-1]] == [
            ["class", n, f] for n, f in zip("012", ("1,000", "1,000", "999"), strict=True)
        ]
        assert write_contact_sheet(tmp_path, tally.first, files) == "contact_sheet.png: 6 of 3,000 files"
    else:
        assert lines[-2] == "and 980 other classes"
    assert lines[-1].startswith("unreadable: 1, such as ") and lines[-1].endswith("0005.png: an empty file")
    table = prediction_table(rows[:20]).splitlines()
    assert table[0].split() == ["path", "prediction", "probability", "runner-up"]
    assert sum(" error " in line for line in table) == 1
    assert len(rows[0].probabilities) == min(classes, 100)


def test_no_line_counts_unreadable_files_where_all_can_be_read():
    logits = np.eye(2, dtype=np.float32)[np.arange(21) % 2]
    tally = Tally(keep=0)
    for _ in tally.counted(predicted_rows([f"{i:02}.png" for i in range(21)], logits, ["bass", "eel"])):
        pass
    assert tally.lines() == ["class  files", "bass      11", "eel       10"]


def test_prepare_shows_the_classes_with_the_fewest_images(make_image, tmp_path):
    for label in range(120):
        for number in range(1 + (label >= 20)):
            make_image(tmp_path / "photos" / f"{label:03}" / f"{number}.png", (9 * (label % 20), 99, 9), label, (8, 8))
    rows = [
        (f"{file.parent.name}/{file.name}", file.parent.name, "", "") for file in (tmp_path / "photos").rglob("*.png")
    ]
    found = inspect(make_catalog(tmp_path / "photos", rows), [])
    lines = data_table(found).splitlines()
    assert lines[21] == "20 of 120 classes, those with the fewest images"
    assert [line.split()[:2] for line in lines[1:21]] == [[f"{label:03}", "1"] for label in range(20)]
    write_data_report(tmp_path / "report.html", found, 2, 2)
    assert "100 of 120 classes, those with the fewest images" in (tmp_path / "report.html").read_text()
