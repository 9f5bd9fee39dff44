"""``last.ckpt``: when it is saved, and that it is never left half-written."""

import pytest
import torch
from helpers import SHORT, checkpoint_of, same

from fish_lightning.errors import UserError
from fish_lightning.resume.checkpoints import LastCheckpoint


@pytest.mark.parametrize(
    ("settings", "every", "steps"),
    [
        ({}, None, [4, 8]),  # the end of each epoch
        ({}, 3, [3, 4, 6, 8]),
        ({}, 4, [4, 8]),  # once, not twice, where both are due
        ({"accumulate_grad_batches": 3}, 1, [1, 2, 3, 4]),  # 4 batches an epoch: a step of 3 and one of 1
        ({"max_steps": 6}, 5, [4, 5, 6]),
        ({"fast_dev_run": True}, 1, []),
    ],
)
def test_it_is_saved_every_n_steps_and_at_the_end_of_each_epoch(
    make_scripted, make_trainer, tmp_path, settings, every, steps
):
    saved = []
    last = LastCheckpoint(tmp_path / "last.ckpt", every)
    trainer = make_trainer(**({"max_epochs": 2, "callbacks": [last]} | settings))
    trainer.save_checkpoint = lambda path, weights_only: saved.append((trainer.global_step, path, weights_only))
    trainer.fit(make_scripted([0.5] * 2, [0.5] * 2, batches=4))
    assert saved == [(step, tmp_path / "last.ckpt", False) for step in steps]


def test_a_requested_checkpoint_is_saved_after_the_step(make_scripted, make_trainer, tmp_path):
    last = LastCheckpoint(tmp_path / "last.ckpt")
    last.requested = True
    make_trainer(callbacks=[last], max_steps=2).fit(make_scripted([0.5], [0.5]))
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 2


@pytest.mark.parametrize("every", [0, -1])
def test_a_number_of_steps_below_one_is_an_error(tmp_path, every):
    with pytest.raises(UserError, match=rf"callbacks\.last\.every_n_steps={every}: expected 1 or more, or null"):
        LastCheckpoint(tmp_path / "last.ckpt", every)


def test_a_run_killed_while_it_writes_a_checkpoint_resumes_from_the_previous_one(tmp_path, attempts):
    recipe = ["callbacks.last.every_n_steps=2", "trainer.max_epochs=1", *SHORT]
    kill = "+callbacks.kill={_target_:faults.KillWhileWriting,step:6}"
    whole, killed = attempts(tmp_path, ("whole", recipe), ("parts", [*recipe, kill]))
    assert (whole.code, killed.code) == (0, -9), whole.err + killed.err
    parts = tmp_path / "parts"
    assert checkpoint_of(parts)["global_step"] == 4
    assert len(list((parts / "checkpoints").glob(".*.last.ckpt"))) == 1  # half a file
    (resumed,) = attempts(tmp_path, ("parts", [*recipe, "ckpt=last"]))
    assert resumed.code == 0, resumed.err
    assert sorted(file.name for file in (parts / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    assert same(checkpoint_of(parts)["state_dict"], checkpoint_of(tmp_path / "whole")["state_dict"])


def test_a_full_disk_keeps_the_previous_checkpoint_and_is_a_short_error(tmp_path, attempts):
    full = "+callbacks.full={_target_:faults.FullDisk,step:3,size:200000}"
    (done,) = attempts(tmp_path, ("run", ["callbacks.last.every_n_steps=2", *SHORT, full]))
    assert done.code == 1
    assert done.err.splitlines() == [
        "error: not enough disk space for the checkpoint run/checkpoints/last.ckpt (File too large); "
        "the previous one is intact",
        "free some and resume from it, or write elsewhere: paths.logs=FOLDER",
    ]
    (last,) = (tmp_path / "run" / "checkpoints").iterdir()  # nothing half-written beside it
    assert torch.load(last, weights_only=True)["global_step"] == 2
