"""The history of a run: one row before training, one per epoch, none lost or repeated by a resume."""

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint

from fish_lightning.resume.checkpoints import LastCheckpoint
from fish_lightning.resume.signals import StopOnSignal, Stopped
from fish_lightning.training.history import History, line

ACCURACIES, LOSSES = [0.25, 0.5, 0.75, 0.875], [2.0, 1.5, 1.0, 0.5]


def test_rows_are_the_validation_before_training_and_one_per_epoch(make_scripted, make_trainer, capsys):
    history = History()
    trainer = make_trainer(max_epochs=2, callbacks=[history])
    model = make_scripted([0.25, 0.75], [2.0, 1.0], batches=3)
    trainer.validate(model, verbose=False)
    trainer.fit(model)
    before, first, second = history.rows
    assert (before["epoch"], before["val_accuracy"], before["val_loss"]) == (0, 0.25, 2.0)
    assert before["lr"] is before["train_loss"] is before["seconds"] is None
    assert (first["epoch"], first["val_accuracy"], first["val_loss"], first["lr"]) == (1, 0.25, 2.0, 0.5)
    assert (second["epoch"], second["val_accuracy"], second["val_loss"]) == (2, 0.75, 1.0)
    # The loss of step i is i, less the weight's: -0.5 for each step before it.
    assert first["train_loss"] == pytest.approx((0 + 0.5 + 1.0) / 3)
    assert second["train_loss"] == pytest.approx((1.5 + 2.0 + 2.5) / 3)
    printed = [" ".join(text.split()) for text in capsys.readouterr().out.splitlines()]
    assert printed[0] == "before training val loss 2.0000 val accuracy 25.00%"
    assert printed[1].startswith("epoch 1/2 lr 5.00e-01 train loss 0.5000 val loss 2.0000 val accuracy 25.00%")
    assert printed[2].startswith("epoch 2/2 lr 5.00e-01 train loss 2.0000 val loss 1.0000 val accuracy 75.00%")
    assert len(printed) == 3


def test_a_row_is_printed_in_columns():
    row = {"epoch": 3, "lr": 0.0081, "train_loss": 0.412, "val_loss": 0.355, "val_accuracy": 0.882, "seconds": 41.04}
    expected = "epoch 3/6 lr 8.10e-03 train loss 0.4120 val loss 0.3550 val accuracy 88.20% 41.0 s"
    assert " ".join(line(row, 6).split()) == expected
    before = {"epoch": 0, "lr": None, "train_loss": None, "val_loss": 2.3, "val_accuracy": 0.1, "seconds": None}
    assert line(row, 6).index("val loss") == line(before, 6).index("val loss")
    assert line(row, 6).index("val accuracy") == line(before, 6).index("val accuracy")


def test_images_and_seconds_are_counted(make_scripted, make_trainer):
    history = History()
    assert history.images_per_second is None
    make_trainer(max_epochs=2, callbacks=[history]).fit(make_scripted(ACCURACIES, LOSSES, seconds=0.03, batches=4))
    assert history.train_images == 16
    assert 8 * 0.03 <= history.train_seconds <= history.seconds
    assert history.images_per_second == pytest.approx(16 / history.train_seconds)
    assert history.seconds == pytest.approx(sum(row["seconds"] for row in history.rows))


def test_a_run_without_validation_has_rows_too(make_scripted, make_trainer):
    history = History()
    make_trainer(callbacks=[history], limit_val_batches=0).fit(make_scripted([], []))
    assert len(history.rows) == 1 and history.rows[0]["val_loss"] is None and history.rows[0]["train_loss"] is not None


def test_a_resumed_run_has_one_history(make_scripted, make_trainer, tmp_path):
    def callbacks():
        return [History(), ModelCheckpoint(dirpath=tmp_path, filename="last", save_on_train_epoch_end=True)]

    begun = callbacks()
    trainer = make_trainer(max_epochs=2, callbacks=begun)
    trainer.validate(make_scripted(ACCURACIES, LOSSES), verbose=False)
    trainer.fit(make_scripted(ACCURACIES, LOSSES))
    resumed = callbacks()
    trainer = make_trainer(max_epochs=4, callbacks=resumed)
    trainer.fit(make_scripted(ACCURACIES, LOSSES), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    rows = resumed[0].rows
    assert [row["epoch"] for row in rows] == [0, 1, 2, 3, 4]
    assert [row["val_accuracy"] for row in rows[1:]] == ACCURACIES
    assert rows[:3] == begun[0].rows
    assert resumed[0].train_images == 4 * 6 and resumed[0].seconds > begun[0].seconds


def test_the_time_of_an_epoch_that_was_interrupted_is_not_lost(make_scripted, make_trainer, stop_at, tmp_path):
    model = make_scripted(ACCURACIES, LOSSES, seconds=0.05, batches=6)
    with pytest.raises(stop_at.error):
        make_trainer(callbacks=[History(), stop_at(5, tmp_path / "last.ckpt")]).fit(model)
    history = History()
    trainer = make_trainer(callbacks=[history])
    trainer.fit(model, ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert history.train_images == 12
    assert history.train_seconds >= 6 * 0.05
    assert history.seconds >= history.train_seconds  # validation included


@pytest.mark.parametrize("step", [2, 5, 8])  # 5 is the last of its epoch
def test_the_history_of_a_run_stopped_by_ctrl_c_and_resumed_equals_an_uninterrupted_one(
    make_folder, make_data, make_model, make_trainer, ctrl_c, tmp_path, step
):
    def fit(*callbacks, **options):
        history, data, file = History(), make_data(root), tmp_path / "last.ckpt"
        trainer = make_trainer(max_epochs=2, callbacks=[history, StopOnSignal(file), LastCheckpoint(file), *callbacks])
        trainer.fit(make_model(data), datamodule=data, **options)
        return [(row["epoch"], row["train_loss"], row["val_loss"]) for row in history.rows]

    root = make_folder(tmp_path / "photos", 3, 10)  # 19 images to train on in batches of 4: 5 steps an epoch
    whole = fit()
    with pytest.raises(Stopped):
        fit(ctrl_c(step))
    parts = fit(ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert [row[0] for row in parts] == [1, 2]
    assert [row[2] for row in parts] == pytest.approx([row[2] for row in whole], rel=1e-4)
    assert [row[1] for row in parts] == pytest.approx([row[1] for row in whole], rel=1e-4)
