"""Averaged weights: what the average is, what is validated with it, and which weights a checkpoint contains."""

import lightning as L
import pytest
import torch
from helpers import same

from fish_lightning.errors import UserError
from fish_lightning.resume.checkpoints import LastCheckpoint
from fish_lightning.training.average import WeightAverage
from fish_lightning.training.best_checkpoint import BestCheckpoint

WEIGHT, COUNT = "network.conv1.0.weight", "network.conv1.1.num_batches_tracked"


class Watch(L.Callback):
    """Records the weights after each step, and those that are validated."""

    def __init__(self):
        self.steps, self.validated = [], []

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.steps.append(pl_module.state_dict()[WEIGHT].clone())

    def on_validation_batch_start(self, trainer, pl_module, *_):
        self.validated.append({name: part.clone() for name, part in pl_module.state_dict().items()})


@pytest.fixture
def averaged(make_data, make_model, make_trainer, tiny_data, tmp_path):
    """``averaged(**settings of WeightAverage)``: the model after two epochs, and what ``Watch`` recorded."""

    def fit(epochs=2, trainer=None, **settings):
        data, watch = make_data(tiny_data), Watch()
        model = make_model(data)
        best = BestCheckpoint(dirpath=tmp_path, filename="best", monitor="val/accuracy", save_weights_only=True)
        callbacks = [WeightAverage(**settings), watch, best, LastCheckpoint(tmp_path / "last.ckpt")]
        fitted = make_trainer(max_epochs=epochs, callbacks=callbacks, enable_checkpointing=True, **(trainer or {}))
        fitted.fit(model, datamodule=data)
        return model, watch, best

    return fit


def moving_average(steps, decay):
    average = steps[0].clone()
    for n, weights in enumerate(steps[1:], 1):
        average.lerp_(weights, 1 - min(decay, (1 + n) / (10 + n)))
    return average


def test_the_moving_average_is_validated_saved_and_left_in_the_model(averaged, tmp_path):
    model, watch, best = averaged(decay=0.5)
    half = len(watch.steps) // 2
    expected = [moving_average(watch.steps[:end], 0.5) for end in (half, len(watch.steps))]
    batches = len(watch.validated) // 2
    for epoch, average in enumerate(expected):
        validated = watch.validated[epoch * batches]
        assert torch.allclose(validated[WEIGHT], average, atol=1e-6)
        assert not torch.equal(validated[WEIGHT], watch.steps[half * (epoch + 1) - 1])
        assert validated[COUNT] == half * (epoch + 1)
    assert same(model.state_dict(), watch.validated[-1])
    saved = torch.load(tmp_path / "best.ckpt", weights_only=True)["state_dict"]
    assert same(saved, watch.validated[(best.best_epoch - 1) * batches])


def test_the_last_checkpoint_has_the_weights_that_are_trained_and_the_average(averaged, tmp_path):
    _, watch, _ = averaged(decay=0.9)
    last = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert torch.equal(last["state_dict"][WEIGHT], watch.steps[-1])
    state = last["callbacks"]["WeightAverage"]
    kept = state["average"][f"module.{WEIGHT.removeprefix('network.')}"]
    assert torch.equal(kept, watch.validated[-1][WEIGHT])
    assert state["steps"] == len(watch.steps)


def test_the_plain_mean_begins_after_its_start(averaged):
    _, watch, _ = averaged(decay=None, start=0.5)
    half = len(watch.steps) // 2
    batches = len(watch.validated) // 2
    assert torch.equal(watch.validated[0][WEIGHT], watch.steps[half - 1])  # no average yet
    mean = torch.stack(watch.steps[half:]).mean(0)
    assert torch.allclose(watch.validated[batches][WEIGHT], mean, atol=1e-6)


def test_a_step_of_accumulated_batches_counts_once(averaged):
    _, watch, _ = averaged(epochs=1, decay=None, trainer={"accumulate_grad_batches": 3})
    steps = [*watch.steps[2:-1:3], watch.steps[-1]]  # the last of an epoch takes what is left
    assert len(steps) < len(watch.steps)
    assert torch.allclose(watch.validated[0][WEIGHT], torch.stack(steps).mean(0), atol=1e-6)


@pytest.mark.parametrize(("settings", "named"), [({"decay": 1.0}, "decay=1.0"), ({"start": -0.1}, "start=-0.1")])
def test_a_setting_out_of_range_is_an_error(settings, named):
    with pytest.raises(UserError, match=rf"callbacks\.average\.{named}: expected a number in \[0, 1\)"):
        WeightAverage(**settings)
