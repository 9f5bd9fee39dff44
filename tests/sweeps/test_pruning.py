"""A trial reports each epoch to its study and stops when it is pruned."""

import json

import pytest

from fish_lightning.sweeps.pruning import ReportToStudy

optuna = pytest.importorskip("optuna", reason="the optuna extra is not installed")


@pytest.fixture(params=["sqlite:///{}/study.db", "{}/journal.log"])
def study(request, tmp_path):
    """Two finished trials of three epochs and a third that runs; ``.address`` is the storage."""
    from fish_lightning.sweeps.study import open_storage

    address = request.param.format(tmp_path)
    study = optuna.create_study(storage=open_storage(address), study_name="fish", direction="maximize")
    for _ in range(2):
        trial = study.ask()
        for epoch in (1, 2, 3):
            trial.report(0.8, epoch)
        study.tell(trial, 0.8)
    study.ask()
    study.address = address
    return study


def fit(study, make_trainer, make_scripted, accuracies, number=2, monitor="test/accuracy"):
    pruner = optuna.pruners.MedianPruner(n_startup_trials=1, n_warmup_steps=2)
    callback = ReportToStudy(study.address, "fish", monitor, pruner, number)
    trainer = make_trainer(max_epochs=3, callbacks=[callback])
    trainer.fit(make_scripted(accuracies, [1, 1, 1]))
    return callback, trainer


def test_a_trial_below_the_median_stops_after_the_warmup(study, make_trainer, make_scripted):
    callback, trainer = fit(study, make_trainer, make_scripted, [0.1, 0.2, 0.9])
    assert json.dumps(callback.pruned) == "true"
    assert trainer.current_epoch == 2
    assert study.get_trials()[2].intermediate_values == pytest.approx({1: 0.1, 2: 0.2})


def test_a_trial_above_the_median_continues_and_an_epoch_is_not_reported_twice(study, make_trainer, make_scripted):
    running = optuna.trial.Trial(study, study.get_trials()[2]._trial_id)
    running.report(0.85, 1)
    callback, trainer = fit(study, make_trainer, make_scripted, [0.9, 0.9, 0.9])
    assert callback.pruned is False and trainer.current_epoch == 3
    assert study.get_trials()[2].intermediate_values == pytest.approx({1: 0.85, 2: 0.9, 3: 0.9})


def test_a_run_that_is_not_a_trial_reports_nothing(study, make_trainer, make_scripted):
    fit(study, make_trainer, make_scripted, [0.1, 0.1, 0.1], number=None)
    assert study.get_trials()[2].intermediate_values == {}
