"""A NaN or infinite loss does not reach the weights."""

import json
from functools import partial

import lightning as L
import pytest
import torch
from faults import Poison
from helpers import SHORT

from fish_lightning.errors import UserError
from fish_lightning.training.nonfinite import NonFiniteLoss


@pytest.fixture(scope="module")
def root(make_folder, tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("photos"), 3, 10)


@pytest.fixture
def fit(root, make_data, make_model, make_trainer, tmp_path):
    """``fit(action, poisoned steps)``: a fit of 10 steps with momentum; (model, callback, its trainer)."""

    def run(action, steps, value=float("nan"), **settings):
        data = make_data(root)
        model = make_model(data, optimizer=partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=0.1))
        guard = NonFiniteLoss(action, tmp_path / "last.ckpt")
        callbacks = [Poison(steps, value), guard, *settings.pop("callbacks", [])]
        trainer = make_trainer(max_epochs=2, callbacks=callbacks, **settings)
        run.model, run.guard, run.trainer = model, guard, trainer
        trainer.fit(model, datamodule=data)
        return run

    return run


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_run_stops_before_the_step_and_names_the_files(fit, value):
    before = {}

    class Keep(L.Callback):
        def on_train_batch_start(self, trainer, module, *_):
            before.update({name: part.clone() for name, part in module.named_parameters()})

    with pytest.raises(UserError) as raised:
        fit("stop", [3], value, callbacks=[Keep()])
    text = str(raised.value)
    assert text.startswith("the training loss of step 4 is NaN or infinite; the weights are unchanged")
    assert text.count(".png") == 4  # the batch's
    assert "no checkpoint was saved yet" in text and "on_nan=skip" in text
    assert len(text.splitlines()) <= 5
    assert all(torch.equal(part, before[name]) for name, part in fit.model.named_parameters())


def test_a_skipped_batch_changes_nothing_and_is_counted(fit):
    seen = []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer, module, *_):
            weights = {name: part.clone() for name, part in module.state_dict().items() if "train_loss" not in name}
            momentum = [state["momentum_buffer"].clone() for state in trainer.optimizers[0].state.values()]
            seen.append((weights, momentum))

    fit("skip", [3, 4, 8], callbacks=[Watch()])
    assert fit.guard.skipped == 3
    assert len(seen) == fit.trainer.global_step == 10

    def equal(one, other):
        (a, b), (c, d) = seen[one], seen[other]
        return all(torch.equal(a[name], c[name]) for name in a) and all(map(torch.equal, b, d))

    assert equal(2, 3) and equal(3, 4) and equal(7, 8)
    assert not equal(4, 5)
    assert all(part.isfinite().all() for part in fit.model.state_dict().values())
    assert fit.trainer.callback_metrics["train/loss"].isfinite()


def test_accumulated_gradients_are_skipped_together(fit):
    fit("skip", [1], accumulate_grad_batches=2)  # 5 batches an epoch: steps of 2, 2 and 1
    assert fit.guard.skipped == 1
    assert all(part.isfinite().all() for part in fit.model.state_dict().values())


def test_nan_weights_are_not_saved(fit, tmp_path):
    class Ruin(L.Callback):
        def on_train_batch_end(self, trainer, module, *_):
            if trainer.global_step == 4:
                next(module.parameters()).data.fill_(torch.nan)
                trainer.save_checkpoint(tmp_path / "last.ckpt", weights_only=False)

    with pytest.raises(UserError, match=r"weights are NaN or infinite .*; they were not saved"):
        fit("skip", [], callbacks=[Ruin()])
    assert not (tmp_path / "last.ckpt").exists()


@pytest.mark.parametrize("action", ["stop", "skip"])
def test_nan_gradients_of_a_finite_loss_stop_the_run_in_either_case(fit, action):
    class Ruin(L.Callback):
        def on_before_optimizer_step(self, trainer, module, *_):
            if trainer.global_step == 2:
                next(module.parameters()).grad.fill_(torch.nan)

    with pytest.raises(UserError, match="the weights are NaN or infinite after a step whose loss was finite"):
        fit(action, [], callbacks=[Ruin()])
    assert fit.trainer.global_step == 3
    assert fit.guard.skipped == 0


def test_the_count_is_saved_and_another_action_is_an_error(tmp_path):
    guard = NonFiniteLoss("skip", tmp_path)
    guard.load_state_dict({"skipped": 4})
    assert guard.state_dict() == {"skipped": 4}
    with pytest.raises(UserError, match="on_nan=ignore: expected stop or skip"):
        NonFiniteLoss("ignore", tmp_path)


def poison(steps, inside=False):
    return f"+callbacks.poison={{_target_:faults.Poison,steps:{steps},inside:{inside}}}"


@pytest.mark.parametrize("inside", [False, True], ids=["logits", "batch normalization"])
def test_a_run_stops_with_the_last_good_checkpoint(tmp_path, train_tiny, faults, inside):
    done = train_tiny(tmp_path, poison([9], inside), "callbacks.last.every_n_steps=4", *SHORT, env=faults)
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert lines[0] == "error: the training loss of step 10 is NaN or infinite; the weights are unchanged"
    assert lines[1].startswith("batch: class ") and lines[1].count(".png") == 4
    (last,) = tmp_path.glob("logs/train/runs/*/checkpoints/last.ckpt")
    assert lines[2] == f"last good checkpoint: {last.relative_to(tmp_path)}"
    assert len(lines) == 4
    saved = torch.load(last, weights_only=True)
    assert saved["global_step"] == 8
    assert all(part.isfinite().all() for part in saved["state_dict"].values())


@pytest.mark.slow
def test_a_learning_rate_that_makes_the_weights_nan_stops_the_run(tmp_path, train_tiny):
    done = train_tiny(tmp_path, "optimizer.lr=1e300", "optimizer=sgd", "gradient_clip=none", *SHORT)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "the weights are NaN or infinite" in done.stderr and "a lower optimizer.lr often helps" in done.stderr


def test_a_run_that_skips_every_batch_has_diverged(tmp_path, train_tiny):
    settings = ("optimizer.lr=1e38", "on_nan=skip", "model.name=squeezenet1_1", "trainer.max_epochs=1")
    done = train_tiny(tmp_path, *settings)
    assert (done.returncode, "Traceback" in done.stderr) == (1, False), done.stderr
    assert "diverged" in done.stderr and "lower optimizer.lr" in done.stderr and len(done.stderr.splitlines()) <= 5
    assert not list(tmp_path.glob("logs/train/runs/*/summary.json"))


def test_an_epoch_without_a_finite_loss_ends_the_run(fit):
    with pytest.raises(UserError, match="the model diverged: no training loss of epoch 2 is finite"):
        fit("skip", range(5, 10), limit_val_batches=0)
    assert fit.guard.skipped == 5
    fit("skip", range(5, 10))  # the validation loss is finite: a later epoch may be too


@pytest.mark.parametrize("inside", [False, True], ids=["logits", "batch normalization"])
def test_skipped_batches_are_reported(tmp_path, train_tiny, faults, inside):
    done = train_tiny(tmp_path, poison([2, 9], inside), "on_nan=skip", *SHORT, env=faults)
    assert done.returncode == 0, done.stderr
    (summary,) = tmp_path.glob("logs/train/runs/*/summary.json")
    assert json.loads(summary.read_text())["skipped_batches"] == 2
    assert "(on_nan=skip): 2" in done.stdout
    assert done.stderr == ""
