"""What TensorBoard is given, read back from a run's event files."""

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


@pytest.fixture(scope="module")
def events(trained):
    return EventAccumulator(str(trained.folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0}).Reload()


def test_scalars_are_there_and_the_rate_of_each_step(events):
    names = events.Tags()["scalars"]
    assert {"train/loss_step", "train/loss", "val/loss", "val/accuracy", "test/accuracy", "lr-Adam"} <= set(names)
    assert [scalar.step for scalar in events.Scalars("lr-Adam")] == list(range(14))
    assert len(events.Scalars("val/accuracy")) == 3


def test_pictures_are_there(events):
    assert set(events.Tags()["images"]) == {"train/first_batch", "test/confusion_matrix", "test/predictions"}
    (first,) = events.Images("train/first_batch")
    assert first.encoded_image_string.startswith(b"\x89PNG")
    assert min(first.width, first.height) >= 100


def test_the_config_is_there_as_text(events):
    (config,) = events.Tensors("config/text_summary")
    text = config.tensor_proto.string_val[0].decode()
    assert "    model:\n" in text
    assert "      name: shufflenet_v2_x0_5\n" in text
    assert "${" not in text.replace("${now", "")


def test_choices_and_final_scores_are_in_the_hparams_tab(events, trained):
    plugin = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    for name in (b"optimizer.lr", b"model.name", b"trainer.max_epochs", b"seed"):
        assert name in plugin
    assert b"data.cache" not in plugin
    (final,) = events.Scalars("final/test/accuracy")
    assert f"{final.value:.2%}" in trained.stdout
