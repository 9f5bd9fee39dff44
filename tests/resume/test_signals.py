"""Ctrl-C, SIGTERM and Slurm's signal at any time: the step is saved, and the message tells how to resume."""

import os
import signal

import pytest
from helpers import SHORT, checkpoint_of, rows_of, same


def send(hook, step, number, times=1):
    """Return the override that sends a run a signal."""
    return f"+callbacks.send={{_target_:faults.Send,hook:{hook},step:{step},number:{int(number)},times:{times}}}"


def test_a_signal_between_two_steps_is_handled_after_the_next_one(tmp_path, attempts):
    recipe = ["trainer.val_check_interval=2", "trainer.max_epochs=1", *SHORT]
    (done,) = attempts(tmp_path, ("run", [*recipe, send("on_validation_end", 2, signal.SIGTERM)]))
    assert done.code == 143
    assert "at step 3 of 7, saved in run/checkpoints/last.ckpt" in done.err
    assert checkpoint_of(tmp_path / "run")["global_step"] == 3


@pytest.mark.parametrize(
    ("hook", "step", "times", "number", "words"),
    [
        ("on_validation_batch_start", 0, 1, signal.SIGINT, "stopped by SIGINT before training\nnothing was saved"),
        (
            "on_before_optimizer_step",
            2,
            2,
            signal.SIGINT,
            "SIGINT immediately, in the middle of a step\nnothing was saved",
        ),
        ("on_before_optimizer_step", 6, 1, signal.SIGTERM, "stopped by SIGTERM at step 7 of 7, saved in "),
        (
            "on_test_batch_start",
            7,
            1,
            signal.SIGTERM,
            "stopped by SIGTERM during the test, after training\nresume with",
        ),
    ],
)
def test_a_signal_at_any_time_ends_the_run_with_a_short_message(
    tmp_path, train_tiny, faults, hook, step, times, number, words
):
    short = ("trainer.max_epochs=1",)
    done = train_tiny(tmp_path, *short, send(hook, step, number, times), env=faults)
    assert done.returncode == 128 + number, done.stdout + done.stderr
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 2, done.stderr
    assert "INFO" not in done.stdout and "weights_only" not in done.stdout  # Lightning's own messages
    assert not list(tmp_path.rglob("summary.json"))
    for last in tmp_path.rglob("last.ckpt"):
        assert f"resume with python -m fish_lightning.train ckpt={last.parents[1].relative_to(tmp_path)}" in done.stderr


@pytest.fixture
def slurm(tmp_path, faults):
    """Environment of a process started by srun, with an ``scontrol`` that records its arguments."""
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text('#!/bin/sh\necho "$@" >> "$(dirname "$0")/asked"\n')
    scontrol.chmod(0o755)
    job = {"SLURM_JOB_ID": "4242", "SLURM_JOB_NAME": "fish", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "1"}
    process = {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
    return faults | job | process | {"PATH": f"{scontrol.parent}{os.pathsep}{os.environ['PATH']}"}


@pytest.mark.slow
def test_a_job_that_slurm_preempts_is_requeued_and_resumes(tmp_path, trained, train_tiny, slurm):
    command = (tmp_path, send("on_before_optimizer_step", 3, signal.SIGUSR1))
    warned = train_tiny(*command, env=slurm)
    assert warned.returncode == 128 + signal.SIGUSR1, warned.stderr
    assert "stopped by SIGUSR1 at step 4 of 14" in warned.stderr
    assert warned.stderr.splitlines()[-1] == "Slurm job 4242 is requeued and will resume automatically"
    assert (tmp_path / "bin" / "asked").read_text() == "requeue 4242\n"
    folder = tmp_path / "logs" / "train" / "runs" / "slurm-4242.0"
    assert checkpoint_of(folder)["global_step"] == 4

    again = train_tiny(*command, env=slurm | {"SLURM_RESTART_COUNT": "1"})
    assert again.returncode == 0, again.stderr
    assert list(folder.parent.iterdir()) == [folder]
    assert not list(tmp_path.rglob("hpc_ckpt*"))
    for name in ("best.ckpt", "last.ckpt"):
        ours, theirs = (checkpoint_of(at, name)["state_dict"] for at in (folder, trained.folder))
        assert same(ours, theirs)
    assert rows_of(folder / "metrics.csv") == rows_of(trained.folder / "metrics.csv")


@pytest.mark.slow
def test_a_job_that_slurm_preempts_before_training_starts_again(tmp_path, train_tiny, slurm):
    short = ("trainer.max_epochs=1", "test=false")
    warned = train_tiny(tmp_path, *short, send("on_validation_batch_start", 0, signal.SIGUSR1), env=slurm)
    assert warned.returncode == 128 + signal.SIGUSR1
    assert "stopped by SIGUSR1 before training" in warned.stderr
    assert "is requeued and will resume automatically" in warned.stderr
    again = train_tiny(tmp_path, *short, env=slurm | {"SLURM_RESTART_COUNT": "1"})
    assert again.returncode == 0, again.stderr
    rows = rows_of(tmp_path / "logs" / "train" / "runs" / "slurm-4242.0" / "metrics.csv")
    assert len([row for row in rows if row["val/loss"]]) == 2  # before training and after the epoch
