"""A run killed in the validation that ends its epoch early has the same metrics.csv when it is resumed."""

from helpers import rows_of

EARLY = (
    *("callbacks=early_stopping", "callbacks.early_stopping.patience=1", "callbacks.early_stopping.min_delta=100"),
    *("trainer.val_check_interval=3", "trainer.max_epochs=4", "callbacks.last.every_n_steps=1", "test=false"),
)


def test_the_row_of_the_training_loss_is_not_missing(tmp_path, attempts):
    kill = "+callbacks.kill={_target_:faults.KillAt,hook:on_validation_start,step:6}"
    whole, killed, resumed = attempts(
        tmp_path, ("whole", EARLY), ("run", [*EARLY, kill]), ("run", [*EARLY, "ckpt=last"])
    )
    assert (whole.code, killed.code, resumed.code) == (0, -9, 0), whole.err + resumed.err
    one, other = (rows_of(tmp_path / name / "metrics.csv") for name in ("whole", "run"))
    assert any(row["train/loss"] for row in one)
    assert [(row["step"], row["train/loss"]) for row in other] == [(row["step"], row["train/loss"]) for row in one]
