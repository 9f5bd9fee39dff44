"""``sweep=optuna``: a study that outlives a kill, is shared by ranks, records failures, prunes and refuses."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from conftest import REPOSITORY, TINY
from hydra.core.override_parser.overrides_parser import OverridesParser

from fish_lightning.errors import UserError
from fish_lightning.sweeps.optuna_sweeper import distribution

optuna = pytest.importorskip("optuna", reason="the optuna extra is not installed")

HELPERS = {"PYTHONPATH": os.pathsep.join([str(REPOSITORY / "tests"), os.environ.get("PYTHONPATH", "")])}
SHORT = ("sweep=optuna", "hydra.sweep.dir=study", "validate_first=false", "test=false", "trainer.max_epochs=1")
# TINY sets the rate; the search space is what is left of the one that sweep=optuna brings, without groups of four.
SMALL = ("trainer.limit_train_batches=2", "gradient_clip=value")


def study_in(folder):
    storage = optuna.storages.RDBStorage(f"sqlite:///{folder / 'study.db'}")
    return optuna.load_study(study_name="fish_lightning", storage=storage)


def states(study):
    return [trial.state.name for trial in study.get_trials()]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("x=choice(a,b)", "CategoricalDistribution(choices=('a', 'b'))"),
        ("x=a,null", "CategoricalDistribution(choices=('a', 'null'))"),
        ("x=range(1,9,2)", "IntDistribution(high=7, log=False, low=1, step=2)"),
        ("x=range(0,1,0.5)", "CategoricalDistribution(choices=('0.0', '0.5'))"),
        ("x=interval(0,1)", "FloatDistribution(high=1.0, log=False, low=0.0, step=None)"),
        ("x=int(interval(1,9))", "IntDistribution(high=9, log=False, low=1, step=1)"),
        ("x=tag(log,interval(0.001,1))", "FloatDistribution(high=1.0, log=True, low=0.001, step=None)"),
    ],
)
def test_a_sweep_in_hydras_grammar_is_a_distribution(override, expected):
    assert str(distribution(OverridesParser.create().parse_override(override))) == expected


def test_what_optuna_cannot_search_is_named():
    with pytest.raises(UserError, match=r"x=tag\(log,interval\(0,1\)\): Optuna cannot search it"):
        distribution(OverridesParser.create().parse_override("x=tag(log,interval(0,1))"))


@pytest.fixture(scope="module")
def killed(tmp_path_factory, train_tiny, tiny_data):
    """A study of three trials killed with -9 in the second epoch of its second one, and gone on with."""
    cwd = tmp_path_factory.mktemp("killed")
    slow = ("+callbacks.slow._target_=rank_callbacks.Slow",)
    overrides = [*SHORT, *SMALL, "hydra.sweeper.n_trials=3", "trainer.max_epochs=2", "optimizer=adam,sgd", *slow]
    command = [sys.executable, "-m", "fish_lightning.train", *TINY, f"data.root={tiny_data}", *overrides]
    environment = os.environ | HELPERS | {"SLOW_SECONDS": "60"}
    process = subprocess.Popen(command, cwd=cwd, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    checkpoint = cwd / "study" / "1" / "checkpoints" / "last.ckpt"
    for _ in range(600):
        if checkpoint.is_file():
            break
        time.sleep(0.1)
    time.sleep(0.5)
    second = train_tiny(cwd, *overrides, env=HELPERS)
    process.send_signal(signal.SIGKILL)
    process.wait()
    begun = [(trial.number, trial.params) for trial in study_in(cwd / "study").get_trials()]
    done = train_tiny(cwd, *overrides, env=HELPERS)
    return SimpleNamespace(second=second, before=begun, done=done, folder=cwd / "study", study=study_in(cwd / "study"))


@pytest.mark.slow
def test_a_killed_study_goes_on_with_no_trial_lost_or_doubled(killed):
    assert killed.done.returncode == 0, killed.done.stderr
    assert "3 trials, highest val/accuracy; 1 are done, 1 go on" in killed.done.stdout
    assert states(killed.study) == ["COMPLETE"] * 3
    assert [(trial.number, trial.params) for trial in killed.study.get_trials()][:2] == killed.before
    assert sorted(path.name for path in killed.folder.iterdir() if path.is_dir()) == ["0", "1", "2"]
    with (killed.folder / "sweep.csv").open(newline="") as stream:
        assert sorted(row["job"] for row in csv.DictReader(stream)) == ["0", "1", "2"]


@pytest.mark.slow
def test_the_interrupted_trial_goes_on_from_its_own_checkpoint(killed):
    with (killed.folder / "1" / "metrics.csv").open(newline="") as stream:
        steps = [row["step"] for row in csv.DictReader(stream) if row["lr-Adam" if "lr-Adam" in row else "lr-SGD"]]
    assert steps == ["0", "1", "2", "3"]  # two of the first epoch before the kill, two of the second after it
    assert killed.done.stdout.count("epoch 1/2") == 1  # of trial 2 alone
    assert killed.study.get_trials()[1].intermediate_values.keys() == {1, 2}


@pytest.mark.slow
def test_two_sweeps_on_one_study_are_refused(killed):
    assert killed.second.returncode == 1
    assert killed.second.stderr.startswith("error: hydra.sweep.dir: another sweep is running in study")


@pytest.mark.slow
def test_a_study_made_with_other_parameters_is_refused(killed, train_tiny):
    changed = (*SHORT, *SMALL, "optimizer=adam", "trainer.max_epochs=2", "model.label_smoothing=interval(0,0.1)")
    done = train_tiny(killed.folder.parent, *changed)
    assert done.returncode == 1
    assert "was made with other parameters: model.label_smoothing was interval(0.0,0.2), is interval(0,0.1)" in (
        done.stderr
    )
    assert len(done.stderr.strip().splitlines()) <= 5
    assert len(study_in(killed.folder).get_trials()) == 3


@pytest.mark.slow
def test_all_ranks_of_a_trial_share_its_parameters(tmp_path, train_tiny):
    ddp = ("trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu", "data.batch_size=5")
    spy = ("+callbacks.spy._target_=rank_callbacks.Spy", "optimizer=adam,sgd")
    done = train_tiny(tmp_path, *SHORT, *SMALL, *ddp, *spy, "hydra.sweeper.n_trials=1", env=HELPERS)
    assert done.returncode == 0, done.stderr
    (trial,) = study_in(tmp_path / "study").get_trials()
    one, two = (json.loads((tmp_path / "study" / "0" / f"rank-{rank}.json").read_text()) for rank in (0, 1))
    assert one == two
    assert one["weight_decay"] == trial.params["optimizer.weight_decay"]
    assert one["label_smoothing"] == trial.params["model.label_smoothing"]
    assert one["optimizer"].lower() == trial.params["optimizer"]
    assert trial.intermediate_values.keys() == {1}


@pytest.mark.slow
def test_failed_and_pruned_trials_are_recorded_side_by_side(tmp_path, train_tiny):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="the joblib extra is not installed")
    pruner = ("hydra.sweeper.pruner._target_=optuna.pruners.ThresholdPruner", "+hydra.sweeper.pruner.lower=2")
    pruner += ("~hydra.sweeper.pruner.n_startup_trials", "hydra.sweeper.pruner.n_warmup_steps=0")
    done = train_tiny(
        tmp_path,
        *SHORT,
        *SMALL,
        *pruner,
        "trainer.max_epochs=3",
        "model.weights=null,absent.pth",
        "hydra/launcher=joblib",
        "hydra.sweeper.n_trials=4",
        "hydra.sweeper.n_jobs=2",
    )
    study = study_in(tmp_path / "study")
    wanted = {"null": "PRUNED", "absent.pth": "FAIL"}
    assert states(study) == [wanted[trial.params["model.weights"]] for trial in study.get_trials()]
    assert len(states(study)) == 4 and set(states(study)) == {"PRUNED", "FAIL"} and done.returncode == 1
    assert all(list(t.intermediate_values) == [1] for t in study.get_trials() if t.state.name == "PRUNED")
    with (tmp_path / "study" / "sweep.csv").open(newline="") as stream:
        assert sorted(row["job"] for row in csv.DictReader(stream)) == ["0", "1", "2", "3"]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_a_trial_whose_process_is_killed_goes_on_once_from_its_checkpoint_and_then_counts_as_failed(
    tmp_path, train_tiny, launcher
):
    pytest.importorskip(f"hydra_plugins.hydra_{launcher.partition('_')[0]}_launcher", reason="an extra")
    die = ("+callbacks.die._target_=rank_callbacks.DieInTrials", "trainer.max_epochs=2")
    few = ("optimizer=adam,sgd", f"hydra/launcher={launcher}", "hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=2")
    side = ("hydra.launcher.n_jobs=2",) if launcher == "joblib" else ()
    done = train_tiny(tmp_path, *SHORT, *SMALL, *die, *few, *side, env=HELPERS)
    assert states(study_in(tmp_path / "study")) == ["COMPLETE", "FAIL"], done.stderr
    assert "trial 0 ended without a word: it goes on from its last checkpoint, once" in done.stdout
    assert done.returncode == 1 and "error: 1 of 2 jobs failed" in done.stderr
    assert "Traceback" not in done.stderr
    with (tmp_path / "study" / "0" / "metrics.csv").open(newline="") as stream:
        epochs = [row["epoch"] for row in csv.DictReader(stream) if row["val/accuracy"]]
    assert epochs == ["0", "1"]  # the first before it was killed, the second after


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("hydra.sweeper.n_trials=x", "hydra.sweeper.n_trials=x: it is a whole number, 1 or more"),
        ("hydra.sweeper.n_jobs=0", "hydra.sweeper.n_jobs=0: it is a whole number, 1 or more"),
        ("hydra.sweeper.metric=val/foo", "hydra.sweeper.metric=val/foo: runs measure val/accuracy"),
        ("hydra.sweeper.seed=null", "hydra.sweeper.seed=None: it is a whole number, 0 or more"),
        ("hydra.sweeper.study_name=null", "hydra.sweeper.study_name: a study needs one"),
        ("hydra.sweeper.storage=sea://x", "hydra.sweeper.storage=sea://x: it cannot be opened"),
        ("hydra.sweeper.storage=/no/x.log", "hydra.sweeper.storage=/no/x.log: it cannot be opened"),
        ("hydra.sweeper.sampler.n_startup_trials=x", "hydra.sweeper.sampler: it cannot draw"),
        ("optimizer=adam,lion", "Could not find 'optimizer/lion'"),
        ("optimized_metric=val/acuracy", "optimized_metric=val/acuracy: runs measure val/accuracy"),
    ],
)
def test_a_setting_of_the_sweep_that_is_wrong_is_one_short_error(tmp_path, train_tiny, override, message):
    done = train_tiny(tmp_path, *SHORT, override)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_study_in_a_shared_storage_knows_its_folder(tmp_path, train_tiny):
    shared = (*SMALL, "optimizer=adam,sgd", "hydra.sweeper.n_trials=1", f"hydra.sweeper.storage={tmp_path}/study.log")
    first = train_tiny(tmp_path, *SHORT, *shared)
    assert first.returncode == 0, first.stderr
    second = train_tiny(tmp_path, *SHORT, *shared, "hydra.sweep.dir=other")
    assert second.returncode == 1
    assert "has its trials in study\ngo on with hydra.sweep.dir=study" in second.stderr
