"""The best checkpoint: the highest accuracy; of ties the lowest loss, then the earliest epoch."""

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from fish_lightning.training.best_checkpoint import BestCheckpoint


def best_in(folder, monitor="val/accuracy"):
    return BestCheckpoint(dirpath=folder, filename="best", monitor=monitor, save_weights_only=True)


@pytest.mark.parametrize(
    ("accuracies", "losses", "best_epoch"),
    [
        ([0.5, 0.7, 0.6], [0.9, 0.8, 0.1], 2),  # the higher accuracy, whatever the loss
        ([0.5, 0.7, 0.7, 0.7, 0.6], [1.0, 0.9, 0.8, 0.85, 0.1], 3),  # of ties the lower loss
        ([0.7, 0.7, 0.7], [0.5, 0.5, 0.5], 1),  # then the earliest epoch
        ([0.7, 0.7, 0.8, 0.8], [0.5, 0.1, 0.9, 0.95], 3),  # the loss of a former best is ignored
        ([0.9, 0.1, 0.9], [0.5, 0.01, 0.4], 3),  # a worse epoch between two ties
        ([0.0, 0.0], [2.0, 1.0], 2),
    ],
)
def test_the_best_epoch_is_kept(make_scripted, make_trainer, tmp_path, accuracies, losses, best_epoch):
    best = best_in(tmp_path / "checkpoints")
    make_trainer(max_epochs=len(losses), callbacks=[best]).fit(make_scripted(accuracies, losses))
    assert best.best_epoch == best_epoch
    assert best.best_model_path == str(tmp_path / "checkpoints" / "best.ckpt")
    assert [file.name for file in (tmp_path / "checkpoints").iterdir()] == ["best.ckpt"]
    checkpoint = torch.load(best.best_model_path, weights_only=True)
    assert checkpoint["epoch"] == best_epoch - 1
    assert "optimizer_states" not in checkpoint
    assert float(best.best_model_score) == pytest.approx(accuracies[best_epoch - 1])


def test_the_validation_before_the_fit_does_not_count_as_an_epoch(make_scripted, make_trainer, tmp_path):
    best = best_in(tmp_path / "checkpoints")
    trainer = make_trainer(max_epochs=2, callbacks=[best])
    model = make_scripted([0.9, 0.8], [0.1, 0.2])
    trainer.validate(model, verbose=False)
    assert best.best_epoch is None and not (tmp_path / "checkpoints" / "best.ckpt").exists()
    trainer.fit(model)
    assert best.best_epoch == 1


@pytest.mark.parametrize(
    ("losses", "best_epoch"),
    [([0.5, 0.4, 0.45, 0.3], 4), ([0.5, 0.2, 0.45, 0.3], 2)],
)
def test_a_resumed_run_keeps_the_best_epoch(make_scripted, make_trainer, tmp_path, losses, best_epoch):
    def callbacks():
        last = ModelCheckpoint(dirpath=tmp_path, filename="last", save_on_train_epoch_end=True)
        return [best_in(tmp_path), last]

    accuracies = [0.6, 0.7, 0.7, 0.7]
    make_trainer(max_epochs=2, callbacks=callbacks()).fit(make_scripted(accuracies, losses))
    resumed = callbacks()
    trainer = make_trainer(max_epochs=4, callbacks=resumed)
    trainer.fit(make_scripted(accuracies, losses), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert resumed[0].best_epoch == best_epoch
    assert torch.load(tmp_path / "best.ckpt", weights_only=True)["epoch"] == best_epoch - 1


def test_with_the_step_as_its_metric_the_last_epoch_is_kept(make_scripted, make_trainer, tmp_path):
    accuracies, losses = [0.9, 0.7, 0.8, 0.6], [0.1, 0.3, 0.2, 0.4]
    best = best_in(tmp_path, monitor="step")
    make_trainer(max_epochs=4, val_check_interval=2, callbacks=[best]).fit(make_scripted(accuracies, losses, batches=4))
    assert best.best_epoch == 4
    assert best.best_metrics["val/accuracy"] == pytest.approx(0.6)
    assert torch.load(tmp_path / "best.ckpt", weights_only=True)["global_step"] == 16
