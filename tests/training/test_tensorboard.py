"""What a run logs to TensorBoard, read from its event files."""

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


@pytest.fixture(scope="module")
def events(trained):
    return EventAccumulator(str(trained.folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0}).Reload()


def test_scalars_are_logged_and_the_learning_rate_of_each_step(events):
    names = events.Tags()["scalars"]
    assert {"train/loss_step", "train/loss", "val/loss", "val/accuracy", "test/accuracy", "lr-Adam"} <= set(names)
    assert [scalar.step for scalar in events.Scalars("lr-Adam")] == list(range(14))
    assert len(events.Scalars("val/accuracy")) == 3


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
    assert b"data.cache" not in plugin
    first, last = events.Scalars("test/accuracy")  # a line across the curves
    assert (first.step, last.step) == (0, 14) and first.value == last.value
    assert f"{last.value:.2%}" in trained.stdout
