"""A study all of whose trials fail ends, and none of them counts."""

import optuna
from helpers import TINY

from fish_lightning.sweeps.study import open_storage


def test_five_failures_in_a_row_end_a_study_and_do_not_count(tmp_path, run, tiny_data):
    words = [*TINY, f"data.root={tiny_data}", "model.weights=absent.pth", "optimizer.lr=interval(0.001,0.01)"]
    study = ["-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=1", "hydra.sweep.dir=study"]
    done = run("train", *study, *words, cwd=tmp_path)
    assert done.returncode == 1
    assert "error: the last 5 trials have failed: see error.txt in study/" in done.stderr
    storage = open_storage(f"sqlite:///{tmp_path}/study/study.db")
    trials = optuna.load_study(study_name="fish_lightning", storage=storage).trials
    assert [trial.state.name for trial in trials] == ["FAIL"] * 5
