"""A run that ended before its last epoch says what has ended it, and how to resume it."""

import pytest
from helpers import SHORT, run_folder, summary_of

SLOW = """
import time, lightning as L
class Slow(L.Callback):
    def on_train_batch_end(self, *_):
        time.sleep(0.4)
"""
EARLY = ("callbacks=early_stopping", "callbacks.early_stopping.patience=1", "callbacks.early_stopping.min_delta=100")


@pytest.mark.parametrize(
    ("given", "by", "said"),
    [
        (["trainer.max_epochs=1"], None, ""),
        (["trainer.max_epochs=-1", "trainer.max_steps=2"], None, ""),
        (
            ["trainer.max_steps=9"],
            "max_steps",
            "stopped by max_steps in epoch 2; to train longer, start a new run with a larger",
        ),
        ([*EARLY, "trainer.max_epochs=4"], "early_stopping", "stopped by early_stopping in epoch 2\n"),
        (
            ["trainer.limit_train_batches=1", "trainer.limit_val_batches=1"],
            None,
            "only part of the data was used (trainer.limit_train_batches=1, trainer.limit_val_batches=1)",
        ),
    ],
)
def test_the_summary_and_the_screen_say_what_has_ended_a_run(tmp_path, train_tiny, given, by, said):
    done = train_tiny(tmp_path, *SHORT, *given)
    assert done.returncode == 0, done.stderr
    assert summary_of(run_folder(tmp_path))["stopped_by"] == by
    assert said in done.stdout
    assert ("stopped by" in done.stdout) == (by is not None)


def test_a_run_out_of_time_is_resumed_by_the_command_it_prints(tmp_path, train_tiny, run):
    (tmp_path / "slow.py").write_text(SLOW)
    path = {"PYTHONPATH": str(tmp_path)}
    limit = ["trainer.max_time=00:00:00:01", "+callbacks.slow._target_=slow.Slow"]
    done = train_tiny(tmp_path, *SHORT, *limit, env=path)
    assert done.returncode == 0, done.stderr
    assert summary_of(run_folder(tmp_path))["stopped_by"] == "max_time"
    assert "stopped by max_time in epoch 1; resume with\n" in done.stdout
    command = done.stdout.partition("resume with\n")[2].splitlines()[0]
    resumed = run("train", *command.split()[3:], cwd=tmp_path, env=path)
    assert resumed.returncode == 0, resumed.stderr
    assert summary_of(run_folder(tmp_path))["stopped_by"] is None
    assert "epoch 2/2" in resumed.stdout
