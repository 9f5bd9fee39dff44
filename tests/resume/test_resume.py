"""A run is never lost: killed at any moment, out of room, moved or sent away, it goes on as before."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import TINY
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

TESTS = Path(__file__).parent


def rows_of(file):
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def same(one, other):
    """Whether two states are equal to the last bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def carry_out(cwd, orders, timeout=200):
    """Run ``faults.py`` with those orders; the exit code of each attempt, and all that was printed."""
    (cwd / "orders.json").write_text(json.dumps(orders))
    done = subprocess.run(
        [sys.executable, str(TESTS / "faults.py"), "orders.json"],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("attempt ")], done


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0])
def test_a_run_killed_ten_times_ends_as_one_that_was_not(tmp_path, tiny_data, seed):
    recipe = [
        *TINY,
        f"data.root={tiny_data}",
        "model.name=mobilenet_v3_small",  # with dropout: what a step draws at random has to come again
        "optimizer=sgd",  # with momentum
        "optimizer.lr=0.01",
        "trainer.max_epochs=5",  # of 7 steps
        "callbacks.last.every_n_steps=3",
    ]
    draw = random.Random(seed)
    hooks = ["on_train_batch_start", "on_before_optimizer_step", "on_train_batch_end", "on_validation_end"]
    kills = []
    for step in sorted(draw.sample(range(4, 34), 10)):
        kill = (
            f"{{_target_:faults.KillAt,hook:{draw.choice(hooks)},step:{step},seconds:{draw.choice([0, 0.02, 0.05])}}}"
        )
        kills.append([*recipe, f"+callbacks.kill={kill}", *(["ckpt=last"] if kills else [])])
    codes, done = carry_out(
        tmp_path, [("whole", recipe), *(("parts", kill) for kill in kills), ("parts", [*recipe, "ckpt=last"])]
    )
    assert codes == [0] + [-9] * 10 + [0], done.stdout + done.stderr

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    ours, theirs = (torch.load(at / "checkpoints" / "last.ckpt", weights_only=True) for at in (parts, whole))
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch"):
        assert same(ours[key], theirs[key]), key
    assert rows_of(parts / "metrics.csv") == rows_of(whole / "metrics.csv")
    history = [[row | {"seconds": None} for row in ckpt["callbacks"]["History"]["rows"]] for ckpt in (ours, theirs)]
    assert history[0] == history[1]
    assert [row["epoch"] for row in history[0]] == [0, 1, 2, 3, 4, 5]
    summaries = [json.loads((at / "summary.json").read_text()) for at in (parts, whole)]
    for key in ("test", "val", "best_epoch", "epochs"):
        assert summaries[0][key] == summaries[1][key]
    for name in ("train/loss_step", "val/loss", "lr-SGD"):
        points = [
            {(p.step, p.value) for p in EventAccumulator(str(at)).Reload().Scalars(name)} for at in (parts, whole)
        ]
        assert points[0] == points[1], name
    assert not list(parts.rglob(".[0-9]*")), "temporary files of the killed processes"


def test_a_validation_within_an_epoch_that_a_run_was_killed_in_comes_again(tmp_path, tiny_data):
    recipe = [*TINY, f"data.root={tiny_data}", "callbacks.last.every_n_steps=1", "trainer.max_epochs=1"]
    recipe += ["trainer.val_check_interval=2", "optimizer.lr=0.003"]  # after steps 2, 4 and 6 of 7
    kills = [("on_validation_start", 2), ("on_validation_end", 4), ("on_train_batch_end", 6)]
    parts = [f"+callbacks.kill={{_target_:faults.KillAt,hook:{hook},step:{step}}}" for hook, step in kills]
    codes, done = carry_out(
        tmp_path,
        [
            ("whole", recipe),
            ("parts", [*recipe, parts[0]]),
            ("parts", [*recipe, parts[1], "ckpt=last"]),
            ("parts", [*recipe, send("on_train_batch_start", 5, signal.SIGTERM), "ckpt=last"]),  # stops at 6
            ("parts", [*recipe, "ckpt=last"]),
        ],
    )
    assert codes == [0, -9, -9, 143, 0], done.stdout + done.stderr
    whole, resumed = (EventAccumulator(str(tmp_path / name)).Reload() for name in ("whole", "parts"))
    for name, steps in (("val/loss", [0, 1, 3, 5]), ("train/loss_step", [0, 1, 2, 3, 4, 5, 6])):
        ours, theirs = ({p.step: p.value for p in of.Scalars(name)} for of in (resumed, whole))
        assert ours == theirs, name
        assert sorted(ours) == steps, name  # the first is the validation before training
    require_same(tmp_path)
    summary = json.loads((tmp_path / "parts" / "summary.json").read_text())
    losses = [p.value for p in whole.Scalars("val/loss")[1:]]
    assert summary["val"]["loss"] == pytest.approx(min(losses)) and losses[-1] > min(losses)  # the best one's
    assert json.loads((tmp_path / "whole" / "summary.json").read_text())["val"] == summary["val"]


def require_same(cwd):
    """The runs ``whole`` and ``parts`` have the same weights, history and rows; and summaries but for times."""
    ours, theirs = (
        torch.load(cwd / name / "checkpoints" / "last.ckpt", weights_only=True) for name in ("parts", "whole")
    )
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch"):
        assert same(ours[key], theirs[key]), key
    history = [[row | {"seconds": None} for row in of["callbacks"]["History"]["rows"]] for of in (ours, theirs)]
    assert history[0] == history[1]
    assert rows_of(cwd / "parts" / "metrics.csv") == rows_of(cwd / "whole" / "metrics.csv")
    summaries = [json.loads((cwd / name / "summary.json").read_text()) for name in ("parts", "whole")]
    for key in ("test", "val", "best_epoch", "epochs"):
        assert summaries[0][key] == summaries[1][key]


def test_a_run_that_is_out_of_time_within_an_epoch_goes_on_with_its_rest(tmp_path, tiny_data):
    recipe = [*TINY, f"data.root={tiny_data}", "trainer.val_check_interval=3"]
    out = [f"+callbacks.out={{_target_:faults.OutOfTime,step:{step}}}" for step in (5, 10)]  # at 10 a validation is due
    codes, done = carry_out(
        tmp_path,
        [
            ("whole", recipe),
            ("parts", [*recipe, out[0]]),
            ("parts", [*recipe, out[1], "ckpt=last"]),
            ("parts", [*recipe, "ckpt=last"]),
        ],
    )
    assert codes == [0, 0, 0, 0], done.stderr
    require_same(tmp_path)


def test_a_run_of_so_many_steps_ends_within_an_epoch_however_often_it_was_killed(tmp_path, tiny_data):
    recipe = [*TINY, f"data.root={tiny_data}", "trainer.max_epochs=-1", "trainer.max_steps=10", "scheduler=none"]
    recipe += ["callbacks.last.every_n_steps=1"]
    killed = [*recipe, "+callbacks.kill={_target_:faults.KillAt,hook:on_train_batch_end,step:10}"]
    stopped = [*recipe, send("on_before_optimizer_step", 9, signal.SIGTERM)]  # the last one
    more = [*recipe, "trainer.max_steps=12", "ckpt=last"]
    again = [*recipe, "ckpt=last"]
    codes, done = carry_out(
        tmp_path,
        [("whole", recipe), ("parts", killed), ("parts", again), ("parts", more), ("late", stopped), ("late", again)],
    )
    assert codes == [0, -9, 0, 1, 143, 0], done.stdout + done.stderr
    assert "error: ckpt: the run ended at step 10, within epoch 2, and would leave its rest out" in done.stderr
    require_same(tmp_path)
    assert "epoch 2 " in done.stdout
    assert json.loads((tmp_path / "late" / "summary.json").read_text())["epochs"] == 2


def test_an_epoch_without_a_validation_has_no_figures_of_one(tmp_path, tiny_data):
    recipe = [*TINY, f"data.root={tiny_data}", "trainer.max_epochs=4", "trainer.check_val_every_n_epoch=2"]
    kill = "+callbacks.kill={_target_:faults.KillAt,hook:on_train_batch_end,step:17}"
    more = ["callbacks.last.every_n_steps=2", "validate_first=false"]
    codes, done = carry_out(
        tmp_path,
        [
            ("whole", [*recipe, *more]),
            ("parts", [*recipe, *more, kill]),
            ("parts", [*recipe, *more, "ckpt=last"]),
        ],
    )
    assert codes == [0, -9, 0], done.stderr
    require_same(tmp_path)
    last = torch.load(tmp_path / "whole" / "checkpoints" / "last.ckpt", weights_only=True)
    rows = last["callbacks"]["History"]["rows"]
    assert [row["epoch"] for row in rows if row["val_loss"] is not None] == [2, 4]


def test_a_signal_between_two_steps_is_heard_after_the_next_which_is_saved(tmp_path, tiny_data):
    recipe = [*TINY, f"data.root={tiny_data}", "trainer.val_check_interval=2", "trainer.max_epochs=1"]
    codes, done = carry_out(tmp_path, [("run", [*recipe, send("on_validation_end", 2, signal.SIGTERM)])])
    assert codes == [143]
    assert "at step 3 of 7; everything up to it is in run/checkpoints/last.ckpt" in done.stderr
    assert torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 3


def test_a_run_killed_while_it_writes_a_checkpoint_goes_on_with_the_one_before(tmp_path, tiny_data):
    recipe = [*TINY, f"data.root={tiny_data}", "callbacks.last.every_n_steps=2", "trainer.max_epochs=1", "test=false"]
    killed = [*recipe, "+callbacks.kill={_target_:faults.KillWhileWriting,step:6}"]
    codes, done = carry_out(tmp_path, [("whole", recipe), ("parts", killed)])
    assert codes == [0, -9], done.stdout + done.stderr
    last = tmp_path / "parts" / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 4
    assert len(list(last.parent.glob(".*.last.ckpt"))) == 1  # half a file
    codes, done = carry_out(tmp_path, [("parts", [*recipe, "ckpt=last"])])
    assert codes == [0], done.stderr
    assert sorted(file.name for file in last.parent.iterdir()) == ["best.ckpt", "last.ckpt"]
    whole = torch.load(tmp_path / "whole" / "checkpoints" / "last.ckpt", weights_only=True)
    assert same(torch.load(last, weights_only=True)["state_dict"], whole["state_dict"])


def test_a_full_disk_keeps_the_checkpoint_before_and_is_a_short_error(tmp_path, tiny_data):
    recipe = [*TINY, f"data.root={tiny_data}", "callbacks.last.every_n_steps=2"]
    full = "+callbacks.full={_target_:faults.FullDisk,step:3,size:200000}"
    codes, done = carry_out(tmp_path, [("run", [*recipe, full])])
    assert codes == [1]
    assert done.stderr.splitlines() == [
        "error: no room for the checkpoint run/checkpoints/last.ckpt (File too large); the one before it is whole",
        "make room and go on with it, or write elsewhere: paths.logs=FOLDER",
    ]
    (last,) = (tmp_path / "run" / "checkpoints").iterdir()  # nothing half-written beside it
    assert torch.load(last, weights_only=True)["global_step"] == 2


def send(hook, step, number, times=1):
    """The override that sends a run's own process a signal."""
    return f"+callbacks.send={{_target_:faults.Send,hook:{hook},step:{step},number:{int(number)},times:{times}}}"


@pytest.fixture
def slurm(tmp_path, faults):
    """Environment of a process that srun started, with an ``scontrol`` that notes what it was asked for."""
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text('#!/bin/sh\necho "$@" >> "$(dirname "$0")/asked"\n')
    scontrol.chmod(0o755)
    job = {"SLURM_JOB_ID": "4242", "SLURM_JOB_NAME": "fish", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "1"}
    process = {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
    return faults | job | process | {"PATH": f"{scontrol.parent}{os.pathsep}{os.environ['PATH']}"}


@pytest.mark.slow
def test_a_job_that_slurm_takes_off_its_node_goes_back_into_the_queue_and_goes_on(tmp_path, trained, train_tiny, slurm):
    command = (tmp_path, send("on_before_optimizer_step", 3, signal.SIGUSR1))
    warned = train_tiny(*command, env=slurm)
    assert warned.returncode == 128 + signal.SIGUSR1, warned.stderr
    assert "stopped by SIGUSR1 at step 4 of 14" in warned.stderr
    assert warned.stderr.splitlines()[-1] == "SLURM job 4242 is in the queue again and goes on by itself"
    assert (tmp_path / "bin" / "asked").read_text() == "requeue 4242\n"
    folder = tmp_path / "logs" / "train" / "runs" / "slurm-4242.0"
    assert torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 4

    again = train_tiny(*command, env=slurm | {"SLURM_RESTART_COUNT": "1"})
    assert again.returncode == 0, again.stderr
    assert list(folder.parent.iterdir()) == [folder]
    assert not list(tmp_path.rglob("hpc_ckpt*"))
    for name in ("best.ckpt", "last.ckpt"):
        ours, theirs = (torch.load(at / "checkpoints" / name, weights_only=True) for at in (folder, trained.folder))
        assert same(ours["state_dict"], theirs["state_dict"])
    assert rows_of(folder / "metrics.csv") == rows_of(trained.folder / "metrics.csv")


@pytest.mark.slow
def test_a_job_warned_before_training_begins_again(tmp_path, train_tiny, slurm):
    command = (tmp_path, "trainer.max_epochs=1", "test=false", send("on_validation_batch_start", 0, signal.SIGUSR1))
    warned = train_tiny(*command, env=slurm)
    assert warned.returncode == 128 + signal.SIGUSR1
    assert "stopped by SIGUSR1 before training" in warned.stderr and "goes on by itself" in warned.stderr
    again = train_tiny(*command[:3], env=slurm | {"SLURM_RESTART_COUNT": "1"})
    assert again.returncode == 0, again.stderr
    rows = rows_of(tmp_path / "logs" / "train" / "runs" / "slurm-4242.0" / "metrics.csv")
    assert len([row for row in rows if row["val/loss"]]) == 2  # before training and after the epoch


@pytest.mark.parametrize(
    ("hook", "step", "times", "number", "words"),
    [
        ("on_validation_batch_start", 0, 1, signal.SIGINT, "stopped by SIGINT before training\nnothing was saved"),
        (
            "on_before_optimizer_step",
            2,
            2,
            signal.SIGINT,
            "stopped by SIGINT at once, within a step\nnothing was saved",
        ),
        ("on_test_batch_start", 14, 1, signal.SIGINT, "stopped by SIGINT in the test, after training\ngo on with"),
        ("on_test_batch_start", 14, 1, signal.SIGTERM, "stopped by SIGTERM in the test, after training\ngo on with"),
    ],
)
def test_a_signal_at_any_time_ends_the_run_with_a_word(tmp_path, train_tiny, faults, hook, step, times, number, words):
    done = train_tiny(tmp_path, send(hook, step, number, times), env=faults)
    assert done.returncode == 128 + number, done.stdout + done.stderr
    assert words in done.stderr
    assert len(done.stderr.splitlines()) <= 3, done.stderr
    assert not list(tmp_path.rglob("summary.json"))
    if "go on with" in words:
        (last,) = tmp_path.rglob("last.ckpt")
        assert f"ckpt={last.relative_to(tmp_path)}" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("step", [2, 6, 9])
def test_lightnings_news_of_a_stop_stay_off_the_screen(tmp_path, train_tiny, faults, step):
    done = train_tiny(tmp_path, send("on_before_optimizer_step", step, signal.SIGTERM), env=faults)
    assert done.returncode == 143
    assert len(done.stderr.splitlines()) == 2
    assert "INFO" not in done.stdout and "weights_only" not in done.stdout
