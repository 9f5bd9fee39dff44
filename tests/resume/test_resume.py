"""A run that is killed, stopped or out of time, at any moment, ends as one that was not."""

import random
import signal

import pytest
from helpers import SHORT, codes, kill, require_same, send, summary_of
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0])
def test_a_run_killed_ten_times_ends_as_one_that_was_not(tmp_path, attempts, seed):
    recipe = [
        "model.name=mobilenet_v3_small",  # with dropout: the random numbers of a step have to be repeated
        "optimizer=sgd",  # with momentum
        "optimizer.lr=0.01",
        "trainer.max_epochs=5",  # of 7 steps
        "callbacks.last.every_n_steps=3",
    ]
    draw = random.Random(seed)
    hooks = ["on_train_batch_start", "on_before_optimizer_step", "on_train_batch_end", "on_validation_end"]
    kills = []
    for step in sorted(draw.sample(range(4, 34), 10)):
        killed = kill(draw.choice(hooks), step, draw.choice([0, 0.02, 0.05]))
        kills.append([*recipe, killed, *(["ckpt=last"] if kills else [])])
    done = attempts(
        tmp_path, ("whole", recipe), *(("parts", killed) for killed in kills), ("parts", [*recipe, "ckpt=last"])
    )
    assert codes(done) == [0] + [-9] * 10 + [0], [attempt.err for attempt in done]

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    history = require_same(parts, whole)
    assert [row["epoch"] for row in history] == [0, 1, 2, 3, 4, 5]
    for name in ("train/loss_step", "val/loss", "lr-SGD"):
        points = [
            {(p.step, p.value) for p in EventAccumulator(str(at)).Reload().Scalars(name)} for at in (parts, whole)
        ]
        assert points[0] == points[1], name
    assert not list(parts.rglob(".[0-9]*")), "temporary files of the killed processes"


def test_a_validation_within_an_epoch_that_was_killed_is_repeated(tmp_path, attempts):
    recipe = ["callbacks.last.every_n_steps=1", "trainer.max_epochs=1"]
    recipe += ["trainer.val_check_interval=2", "optimizer.lr=0.003"]  # after steps 2, 4 and 6 of 7
    done = attempts(
        tmp_path,
        ("whole", recipe),
        ("parts", [*recipe, kill("on_validation_start", 2)]),
        ("parts", [*recipe, kill("on_validation_end", 4), "ckpt=last"]),
        ("parts", [*recipe, send("on_train_batch_start", 5, signal.SIGTERM), "ckpt=last"]),  # stops at 6
        ("parts", [*recipe, "ckpt=last"]),
    )
    assert codes(done) == [0, -9, -9, 143, 0], [attempt.err for attempt in done]
    whole, resumed = (EventAccumulator(str(tmp_path / name)).Reload() for name in ("whole", "parts"))
    for name, steps in (("val/loss", [0, 1, 3, 5]), ("train/loss_step", [0, 1, 2, 3, 4, 5, 6])):
        ours, theirs = ({p.step: p.value for p in of.Scalars(name)} for of in (resumed, whole))
        assert ours == theirs, name
        assert sorted(ours) == steps, name  # the first is the validation before training
    require_same(tmp_path / "parts", tmp_path / "whole")
    summary = summary_of(tmp_path / "parts")
    losses = [p.value for p in whole.Scalars("val/loss")[1:]]
    assert summary["val"]["loss"] == pytest.approx(min(losses)) and losses[-1] > min(losses)  # of the best validation


def test_a_run_that_is_out_of_time_within_an_epoch_resumes_with_the_rest_of_it(tmp_path, attempts):
    recipe = ["trainer.val_check_interval=3"]
    out = [f"+callbacks.out={{_target_:faults.OutOfTime,step:{step}}}" for step in (5, 10)]  # at 10 a validation is due
    done = attempts(
        tmp_path,
        ("whole", recipe),
        ("parts", [*recipe, out[0]]),
        ("parts", [*recipe, out[1], "ckpt=last"]),
        ("parts", [*recipe, "ckpt=last"]),
    )
    assert codes(done) == [0, 0, 0, 0], [attempt.err for attempt in done]
    require_same(tmp_path / "parts", tmp_path / "whole")


def test_a_run_that_max_steps_ends_within_an_epoch_can_be_tested_but_not_trained_further(tmp_path, attempts):
    recipe = ["trainer.max_epochs=-1", "trainer.max_steps=10", "scheduler=none"]
    recipe += ["callbacks.last.every_n_steps=1"]
    again = [*recipe, "ckpt=last"]
    done = attempts(
        tmp_path,
        ("whole", recipe),
        ("parts", [*recipe, kill("on_train_batch_end", 10)]),
        ("parts", again),
        ("parts", [*again, "trainer.max_steps=12"]),
        ("late", [*recipe, send("on_before_optimizer_step", 9, signal.SIGTERM)]),  # in the last step
        ("late", again),
    )
    assert codes(done) == [0, -9, 0, 1, 143, 0], [attempt.err for attempt in done]
    assert "error: ckpt: the run ended at step 10, within epoch 2; resuming would skip its end\n" in done[3].err
    require_same(tmp_path / "parts", tmp_path / "whole")
    assert "epoch 2 " in done[0].out
    assert summary_of(tmp_path / "late")["epochs"] == 2


def test_a_resumed_epoch_without_a_validation_has_no_validation_metrics(tmp_path, attempts):
    recipe = ["trainer.max_epochs=4", "trainer.check_val_every_n_epoch=2", "trainer.limit_train_batches=4"]
    recipe += ["callbacks.last.every_n_steps=2", *SHORT]
    done = attempts(
        tmp_path,
        ("whole", recipe),
        ("parts", [*recipe, kill("on_train_batch_end", 9)]),
        ("parts", [*recipe, "ckpt=last"]),
    )
    assert codes(done) == [0, -9, 0], [attempt.err for attempt in done]
    history = require_same(tmp_path / "parts", tmp_path / "whole")
    assert [row["epoch"] for row in history if row["val_loss"] is not None] == [2, 4]


def test_a_run_with_a_constant_rate_can_be_trained_for_more_epochs_but_not_for_fewer(tmp_path, attempts):
    recipe = ["scheduler=none", "trainer.limit_train_batches=2", *SHORT]
    again = [*recipe, "ckpt=last"]
    done = attempts(
        tmp_path,
        ("run", recipe),
        ("run", [*again, "trainer.max_epochs=3"]),
        ("run", [*again, "trainer.max_epochs=1"]),
    )
    assert codes(done) == [0, 0, 1], [attempt.err for attempt in done]
    assert summary_of(tmp_path / "run")["epochs"] == 3
    assert done[2].err.startswith("error: trainer: ") and "max_epochs=1" in done[2].err


def test_unreadable_images_are_counted_by_a_resumed_run_that_reads_none(tmp_path, damaged, attempts):
    recipe = [f"data.root={damaged}", "data.on_error=skip", *SHORT]
    done = attempts(tmp_path, ("run", recipe), ("run", [*recipe, "ckpt=last"]))
    assert codes(done) == [0, 0], [attempt.err for attempt in done]
    assert summary_of(tmp_path / "run")["unreadable_images"] == ["class a/003.png", "class b/004.png"]


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGINT, 0), (signal.SIGTERM, 2)])
def test_a_stopped_run_ends_as_if_it_had_not_been_stopped(tmp_path, attempts, trained, number, workers):
    recipe = [f"data.num_workers={workers}"]
    # To the workers too, as a terminal or a cluster does.
    stop = send("on_before_optimizer_step", 9, number).replace("}", ",group:true}")
    stopped, resumed = attempts(tmp_path, ("parts", [*recipe, stop]), ("parts", [*recipe, "ckpt=last"]))
    assert stopped.code == 128 + number
    assert stopped.err.splitlines() == [
        f"error: stopped by {number.name} at step 10 of 14, saved in parts/checkpoints/last.ckpt",
        "resume with python -m fish_lightning.train ckpt=parts",
    ]
    assert resumed.code == 0, resumed.err
    require_same(tmp_path / "parts", trained.folder)
