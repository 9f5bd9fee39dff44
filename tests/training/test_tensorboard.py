"""What a run logs to TensorBoard, read from its event files."""

import pytest
from helpers import rows_of
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


@pytest.fixture(scope="module")
def events(trained):
    return EventAccumulator(str(trained.folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0}).Reload()


def test_scalars_are_logged_and_the_learning_rate_of_each_step(events):
    names = events.Tags()["scalars"]
    assert {"train/loss_step", "train/loss", "val/loss", "val/accuracy", "test/accuracy", "lr-Adam"} <= set(names)
    assert [scalar.step for scalar in events.Scalars("lr-Adam")] == list(range(14))
    assert len(events.Scalars("val/accuracy")) == 3
    assert {"train/accuracy", "val/macro_f1"} <= set(names)
    assert not any(name in ("epoch", "hp_metric") or "final" in name for name in names)


def test_training_and_validation_share_a_chart(events):
    (layout,) = events.Tensors("custom_scalars__config__")
    text = layout.tensor_proto.string_val[0]
    charts = [text.index(of) for of in (b"learning rate", b"train/loss", b"train/accuracy", b"macro F1")]
    assert charts == sorted(charts) and b"val/loss" in text[charts[1] : charts[2]]


def test_a_run_has_one_event_file_curves_of_classes_and_a_projector(events, trained):
    assert len(list(trained.folder.rglob("events.out.tfevents*"))) == 1
    assert not list(trained.folder.rglob("hparams.yaml"))
    tested = {row["label"] for row in rows_of(trained.folder / "test_predictions.csv")}
    assert {f"test/{name}" for name in tested} <= set(events.Tags()["tensors"])
    (rows,) = trained.folder.rglob("metadata.tsv")
    assert rows.read_text().splitlines()[0] == "class\tprediction\tpath\tcorrect"
    assert (rows.parent / "sprite.png").is_file() and (trained.folder / "projector_config.pbtxt").is_file()


def test_images_are_logged(events):
    pages = {"test/correct", "test/wrong"} & set(events.Tags()["images"])  # as the predictions are
    assert set(events.Tags()["images"]) - pages == {"train/first_batch", "test/confusion_matrix"} and pages
    (first,) = events.Images("train/first_batch")
    assert first.encoded_image_string.startswith(b"\x89PNG")
    assert min(first.width, first.height) >= 100


def test_the_config_is_logged_as_text(events):
    (config,) = events.Tensors("config/text_summary")
    text = config.tensor_proto.string_val[0].decode()
    assert "    model:\n" in text
    assert "      name: shufflenet_v2_x0_5\n" in text
    assert "${" not in text.replace("${now", "")


def test_settings_and_test_scores_are_logged(events, trained):
    plugin = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    for name in (b"optimizer.lr", b"model.name", b"trainer.max_epochs", b"seed"):
        assert name in plugin
    assert not any(name in plugin for name in (b"data.cache", b"data.root", b"channels_last", b"fused", b"FishClass"))
    first, last = events.Scalars("test/accuracy")  # a line across the curves
    assert (first.step, last.step) == (0, 14) and first.value == last.value
    assert f"{last.value:.2%}" in trained.stdout
