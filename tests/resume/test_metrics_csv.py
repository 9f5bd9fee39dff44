"""``metrics.csv`` of a resumed run equals that of an uninterrupted one."""

import pytest
import torch
from helpers import rows_of
from lightning.pytorch.callbacks import ModelCheckpoint

from fish_lightning.resume.checkpoints import LastCheckpoint
from fish_lightning.resume.metrics_csv import DropLaterRows, ResumableCSVLogger
from fish_lightning.resume.signals import StopOnSignal, Stopped

ACCURACIES, LOSSES = [0.25, 0.5, 0.75, 0.875], [2.0, 1.5, 1.0, 0.5]


def rows_in(folder):
    """Return the rows of metrics.csv without empty cells, numbers as text."""
    return [{key: value for key, value in row.items() if value} for row in rows_of(folder / "metrics.csv")]


def last_in(folder):
    return ModelCheckpoint(dirpath=folder, filename="last", save_on_train_epoch_end=True, enable_version_counter=False)


def test_the_file_is_in_the_run_folder_itself(tmp_path):
    logger = ResumableCSVLogger(tmp_path)
    logger.log_metrics({"val/loss": 0.5}, step=0)
    logger.save()
    assert rows_in(tmp_path) == [{"step": "0", "val/loss": "0.5"}]


def test_rows_are_kept_when_a_logger_opens_the_file_again(tmp_path):
    first = ResumableCSVLogger(tmp_path)
    first.log_metrics({"train/loss": 0.5}, step=0)
    first.log_metrics({"train/loss": 0.25}, step=1)
    first.save()
    again = ResumableCSVLogger(tmp_path)
    again.log_metrics({"train/loss": 0.125, "val/loss": 3.0}, step=2)
    again.save()
    assert rows_in(tmp_path) == [
        {"step": "0", "train/loss": "0.5"},
        {"step": "1", "train/loss": "0.25"},
        {"step": "2", "train/loss": "0.125", "val/loss": "3.0"},
    ]


def test_rows_from_a_step_on_are_dropped_and_logged_again(tmp_path):
    first = ResumableCSVLogger(tmp_path)
    for step in range(4):
        first.log_metrics({"train/loss": float(step)}, step=step)
    first.log_metrics({"val/loss": 9.0}, step=3)
    first.save()
    again = ResumableCSVLogger(tmp_path)
    again.drop_from(2)
    assert [row["step"] for row in rows_in(tmp_path)] == ["0", "1"]
    again.log_metrics({"train/loss": 20.0}, step=2)
    again.save()
    assert rows_in(tmp_path) == [
        {"step": "0", "train/loss": "0.0"},
        {"step": "1", "train/loss": "1.0"},
        {"step": "2", "train/loss": "20.0"},
    ]


def test_pending_rows_are_dropped_too(tmp_path):
    logger = ResumableCSVLogger(tmp_path)
    logger.log_metrics({"train/loss": 1.0}, step=0)
    logger.log_metrics({"train/loss": 2.0}, step=5)
    logger.drop_from(5)
    assert [row["step"] for row in rows_in(tmp_path)] == ["0"]


def test_all_rows_can_be_dropped(tmp_path):
    logger = ResumableCSVLogger(tmp_path)
    logger.log_metrics({"train/loss": 1.0}, step=0)
    logger.drop_from(0)
    logger.log_metrics({"train/loss": 3.0}, step=0)
    logger.save()
    assert rows_in(tmp_path) == [{"step": "0", "train/loss": "3.0"}]


@pytest.mark.parametrize("killed_at", [8, 9, 11])
def test_a_run_killed_after_a_checkpoint_and_resumed_leaves_the_rows_of_a_whole_run(
    make_scripted, make_trainer, stop_at, tmp_path, killed_at
):
    def fit(folder, *more, **options):
        callbacks = [DropLaterRows(), last_in(folder), *more]
        trainer = make_trainer(max_epochs=4, callbacks=callbacks, logger=ResumableCSVLogger(folder))
        trainer.validate(make_scripted(ACCURACIES, LOSSES), verbose=False) if not options else None
        trainer.fit(make_scripted(ACCURACIES, LOSSES), **options)

    fit(tmp_path / "whole")
    with pytest.raises(stop_at.error):
        fit(tmp_path / "parts", stop_at(killed_at))
    last = tmp_path / "parts" / "last.ckpt"
    first_part = rows_in(tmp_path / "parts")
    assert max(int(row["step"]) for row in first_part) >= 6  # there are rows to drop
    assert torch.load(last, weights_only=True)["global_step"] == {8: 6, 9: 6, 11: 9}[killed_at]
    fit(tmp_path / "parts", ckpt_path=last, weights_only=True)
    assert rows_in(tmp_path / "parts") == rows_in(tmp_path / "whole")


@pytest.mark.parametrize("step", [1, 3, 5, 7])
def test_a_run_stopped_by_ctrl_c_and_resumed_leaves_the_rows_of_a_whole_run(
    make_scripted, make_trainer, ctrl_c, tmp_path, step
):
    def fit(folder, *callbacks, **options):
        file = folder / "last.ckpt"
        callbacks = [DropLaterRows(), StopOnSignal(file), LastCheckpoint(file), *callbacks]
        trainer = make_trainer(max_epochs=3, callbacks=callbacks, logger=ResumableCSVLogger(folder))
        trainer.fit(make_scripted(ACCURACIES, LOSSES), **options)

    def column(folder, name):
        return [(int(row["step"]), float(row[name])) for row in rows_in(folder) if name in row]

    fit(tmp_path / "whole")
    parts = tmp_path / "parts"
    with pytest.raises(Stopped, match=f"stopped by SIGINT at step {step} of 9"):
        fit(parts, ctrl_c(step))
    fit(parts, ckpt_path=parts / "last.ckpt", weights_only=True)
    for name, count in (("train/loss_step", 9), ("val/loss", 3)):
        assert len(column(parts, name)) == count
        assert column(parts, name) == column(tmp_path / "whole", name)


@pytest.mark.parametrize("step", [1, 2, 4])
def test_the_row_of_the_step_that_was_saved_is_not_lost_when_the_run_is_killed_before_it_is_logged(
    make_scripted, make_trainer, stop_at, tmp_path, step
):
    def fit(folder, *callbacks, **options):
        callbacks = [DropLaterRows(), *callbacks]
        trainer = make_trainer(
            max_epochs=2, callbacks=callbacks, logger=ResumableCSVLogger(folder), enable_checkpointing=False
        )
        trainer.fit(make_scripted(ACCURACIES, LOSSES), **options)

    def of_steps(folder):  # without this module's epoch loss, which Lightning does not save
        return [row for row in rows_in(folder) if "train/loss_epoch" not in row]

    fit(tmp_path / "whole")
    with pytest.raises(stop_at.error):
        fit(tmp_path / "parts", stop_at(step, tmp_path / "last.ckpt"))
    steps = [row["step"] for row in rows_in(tmp_path / "parts")] if step > 1 else []
    assert str(step - 1) not in steps
    fit(tmp_path / "parts", ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert of_steps(tmp_path / "parts") == of_steps(tmp_path / "whole")


def test_a_line_cut_off_by_a_kill_is_dropped(tmp_path):
    first = ResumableCSVLogger(tmp_path)
    first.log_metrics({"train/loss": 0.5}, step=0)
    first.log_metrics({"train/loss": 0.25}, step=11)
    first.save()
    file = tmp_path / "metrics.csv"
    file.write_bytes(file.read_bytes()[:-3])  # of "11,0.25\r\n" or "0.25,11\r\n"
    again = ResumableCSVLogger(tmp_path)
    again.log_metrics({"train/loss": 0.125}, step=1)
    again.save()
    assert [row["step"] for row in rows_in(tmp_path)] == ["0", "1"]


def test_a_new_run_in_the_folder_of_one_without_a_checkpoint_starts_a_new_file(make_scripted, make_trainer, tmp_path):
    for _ in range(2):
        trainer = make_trainer(
            callbacks=[DropLaterRows()], logger=ResumableCSVLogger(tmp_path), enable_checkpointing=False
        )
        trainer.validate(make_scripted(ACCURACIES, LOSSES), verbose=False)
        trainer.fit(make_scripted(ACCURACIES, LOSSES))
    assert len([row for row in rows_in(tmp_path) if "val/loss" in row]) == 2
