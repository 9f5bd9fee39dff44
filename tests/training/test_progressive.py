"""Training images grow from epoch to epoch; a step sees them small, a validation does not."""

import pytest

from fish_lightning.errors import UserError
from fish_lightning.training.progressive import ProgressiveResize


def test_the_scale_grows_evenly_to_the_full_size():
    callback = ProgressiveResize(start=0.5, full_from=0.8)
    assert [callback.scale(epoch, 5) for epoch in range(5)] == pytest.approx([0.5, 0.625, 0.75, 0.875, 1.0])


def test_a_single_epoch_is_full_size_where_nothing_is_left_to_grow():
    assert ProgressiveResize(start=0.5, full_from=0.0).scale(0, 1) == 1.0


def test_steps_see_small_images_first_and_validation_full_ones(make_data, make_model, make_trainer, tiny_data):
    data = make_data(tiny_data)
    model = make_model(data)
    seen = {"train": [], "val": []}
    forward = model.forward

    def watched(images):
        seen["train" if model.training else "val"].append(tuple(images.shape[2:]))
        return forward(images)

    model.forward = watched
    trainer = make_trainer(max_epochs=2, callbacks=[ProgressiveResize(start=0.5, full_from=0.5)])
    trainer.fit(model, datamodule=data)
    steps = len(seen["train"]) // 2
    assert seen["train"] == [(16, 16)] * steps + [(32, 32)] * steps
    assert set(seen["val"]) == {(32, 32)}


def test_it_is_a_line_on_the_command_line(tmp_path, train_tiny):
    done = train_tiny(tmp_path, "callbacks=progressive", "trainer.max_epochs=1", "test=false")
    assert done.returncode == 0, done.stderr
    assert "epoch 1/1" in done.stdout


@pytest.mark.parametrize("start", [0, -1, 2, "abc"])
def test_a_start_that_is_no_share_is_an_error(start):
    with pytest.raises(UserError, match=rf"callbacks\.progressive\.start={start}: it is a share"):
        ProgressiveResize(start=start)
