"""A run that early stopping has ended is not trained further when it is resumed, be it in its first epoch."""

import torch
from helpers import summary_of
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason

from fish_lightning import compat

STOP = (
    *("callbacks=early_stopping", "callbacks.early_stopping.patience=1", "callbacks.early_stopping.min_delta=100"),
    *("trainer.max_epochs=6", "trainer.val_check_interval=2"),
)


def test_a_run_that_early_stopping_ended_is_only_tested_again(tmp_path, attempts):
    kill = "+callbacks.kill={_target_:faults.KillAt,hook:on_test_start,step:0,stage:test}"
    killed, resumed, again = attempts(
        tmp_path, ("run", [*STOP, kill]), ("run", [*STOP, "ckpt=last"]), ("run", [*STOP, "ckpt=last"])
    )
    assert killed.code == -9, killed.err
    assert "epoch 1/6" in killed.out and "epoch 2/6" not in killed.out
    before = None
    for done in (resumed, again):
        assert done.code == 0, done.err
        assert "epoch 2/6" not in done.out
        after = summary_of(tmp_path / "run")
        assert after["epochs"] == 1  # its first validation sets the mark, the second does not improve on it
        before = before or after
    assert all(after[key] == before[key] for key in ("test", "val", "epochs", "best_epoch"))


def test_a_run_whose_metric_was_not_finite_is_not_called_corrupt(tmp_path, attempts):
    stop = ("callbacks=early_stopping", "trainer.max_epochs=3")
    poison = "+callbacks.poison={_target_:faults.PoisonValidation}"
    kill = "+callbacks.kill={_target_:faults.KillAt,hook:on_test_start,step:0,stage:test}"
    killed, resumed = attempts(tmp_path, ("run", [*stop, poison, kill]), ("run", [*stop, "ckpt=last"]))
    assert killed.code == -9, killed.err
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    state = compat.callback_states(checkpoint)["ResumableEarlyStopping"]
    assert EarlyStoppingReason(state["stopping_reason"]) is EarlyStoppingReason.NON_FINITE_METRIC
    assert resumed.code == 0, resumed.err
    assert "epoch 2/3" not in resumed.out
    summary = summary_of(tmp_path / "run")
    assert (summary["epochs"], summary["stopped_by"]) == (1, "early_stopping")
