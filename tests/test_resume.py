"""A run is never lost: killed at any moment, out of room, moved or sent away, it goes on as before."""

import csv
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import TINY

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
    assert not list(parts.rglob(".[0-9]*")), "temporary files of the killed processes"


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
