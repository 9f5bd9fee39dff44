"""Progressive resizing: training steps see small images first, validation sees the full size."""

import pytest

from fish_lightning.errors import UserError
from fish_lightning.training.progressive import ProgressiveResize


def test_the_scale_grows_linearly_to_the_full_size():
    callback = ProgressiveResize(start=0.5, full_from=0.8)
    assert [callback.scale(epoch, 5) for epoch in range(5)] == pytest.approx([0.5, 0.625, 0.75, 0.875, 1.0])


def test_a_single_epoch_has_the_full_size_if_all_epochs_have_it():
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


@pytest.mark.parametrize("start", [0, -1, 2, "abc"])
def test_a_start_that_is_no_fraction_is_an_error(start):
    with pytest.raises(UserError, match=rf"callbacks\.progressive\.start={start}: expected a fraction"):
        ProgressiveResize(start=start)
