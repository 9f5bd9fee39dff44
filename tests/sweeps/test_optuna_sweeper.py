"""``sweep=optuna``: a study that survives a kill, records failures, prunes, and refuses what does not belong to it."""

import json
import os
import signal
import time
from types import SimpleNamespace

import pytest
from helpers import HELPERS, TINY, rows_of
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from fish_lightning.errors import UserError
from fish_lightning.sweeps.optuna_sweeper import OptunaSweeper, distribution

optuna = pytest.importorskip("optuna", reason="the optuna extra is not installed")

STUDY = ("sweep=optuna", "hydra.sweep.dir=study", "validate_first=false", "test=false", "trainer.max_epochs=1")
# TINY sets the learning rate; what is left of the search space of sweep=optuna, without gradient_clip.
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


def test_a_sweep_that_optuna_does_not_support_is_an_error():
    with pytest.raises(UserError, match=r"x=tag\(log,interval\(0,1\)\): not supported by Optuna"):
        distribution(OverridesParser.create().parse_override("x=tag(log,interval(0,1))"))


@pytest.fixture(scope="module")
def killed(tmp_path_factory, start, train_tiny, tiny_data):
    """A study of three trials, killed in the second epoch of its second one, and resumed."""
    cwd = tmp_path_factory.mktemp("killed")
    slow = ("+callbacks.slow._target_=rank_callbacks.Slow",)
    overrides = [*STUDY, *SMALL, "hydra.sweeper.n_trials=3", "trainer.max_epochs=2", "optimizer=adam,sgd", *slow]
    environment = HELPERS | {"SLOW_SECONDS": "60"}
    program = start("train", *TINY, f"data.root={tiny_data}", *overrides, cwd=cwd, env=environment)
    for _ in range(1200):
        if any(cwd.glob("study/1/checkpoints/last.ckpt")):
            break
        time.sleep(0.05)
    second = train_tiny(cwd, *overrides, env=HELPERS)
    os.kill(program.pid, signal.SIGKILL)
    program.communicate()
    begun = [(trial.number, trial.params) for trial in study_in(cwd / "study").get_trials()]
    done = train_tiny(cwd, *overrides, env=HELPERS)
    return SimpleNamespace(second=second, before=begun, done=done, folder=cwd / "study", study=study_in(cwd / "study"))


@pytest.mark.slow
def test_a_killed_study_is_resumed_with_no_trial_lost_or_repeated(killed):
    assert killed.done.returncode == 0, killed.done.stderr
    assert "3 trials, maximizing val/accuracy; 1 finished, 1 to resume" in killed.done.stdout
    assert states(killed.study) == ["COMPLETE"] * 3
    assert [(trial.number, trial.params) for trial in killed.study.get_trials()][:2] == killed.before
    assert sorted(path.name for path in killed.folder.iterdir() if path.is_dir()) == ["0", "1", "2"]
    assert sorted(row["job"] for row in rows_of(killed.folder / "sweep.csv")) == ["0", "1", "2"]


@pytest.mark.slow
def test_the_interrupted_trial_is_resumed_from_its_own_checkpoint(killed):
    rows = rows_of(killed.folder / "1" / "metrics.csv")
    steps = [row["step"] for row in rows if row["lr-Adam" if "lr-Adam" in row else "lr-SGD"]]
    assert steps == ["0", "1", "2", "3"]  # two of the first epoch before the kill, two of the second after it
    assert killed.done.stdout.count("epoch 1/2") == 1  # of trial 2 only
    assert killed.study.get_trials()[1].intermediate_values.keys() == {1, 2}


@pytest.mark.slow
def test_two_sweeps_of_one_study_at_a_time_are_an_error(killed):
    assert killed.second.returncode == 1
    assert killed.second.stderr.startswith("error: hydra.sweep.dir: another sweep is running in study")


@pytest.mark.slow
def test_a_study_with_other_settings_is_an_error(killed, train_tiny):
    changed = (*STUDY, *SMALL, "optimizer=adam", "trainer.max_epochs=2", "model.label_smoothing=interval(0,0.1)")
    done = train_tiny(killed.folder.parent, *changed)
    assert done.returncode == 1
    assert "was started with other settings: model.label_smoothing was interval(0.0,0.2), is now interval(0,0.1)" in (
        done.stderr
    )
    assert len(done.stderr.strip().splitlines()) <= 5
    assert len(study_in(killed.folder).get_trials()) == 3


@pytest.mark.slow
def test_failed_and_pruned_trials_are_recorded(tmp_path, train_tiny):
    pruner = ("hydra.sweeper.pruner._target_=optuna.pruners.ThresholdPruner", "+hydra.sweeper.pruner.lower=2")
    pruner += ("~hydra.sweeper.pruner.n_startup_trials", "hydra.sweeper.pruner.n_warmup_steps=0")
    weights = ("trainer.max_epochs=3", "model.weights=null,absent.pth", "hydra.sweeper.n_trials=4")
    done = train_tiny(tmp_path, *STUDY, *SMALL, *pruner, *weights)
    study = study_in(tmp_path / "study")
    expected = {"null": "PRUNED", "absent.pth": "FAIL"}
    assert states(study) == [expected[trial.params["model.weights"]] for trial in study.get_trials()]
    assert set(states(study)) == {"PRUNED", "FAIL"} and done.returncode == 1
    assert all(list(t.intermediate_values) == [1] for t in study.get_trials() if t.state.name == "PRUNED")
    assert states(study)[-5:] == ["FAIL"] * 5 and "the last 5 trials have failed" in done.stderr


@pytest.mark.slow
def test_a_trial_whose_process_is_killed_is_resumed_from_its_checkpoint(tmp_path, train_tiny):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="the joblib extra is not installed")
    die = ("+callbacks.die._target_=rank_callbacks.DieInTrial", "trainer.max_epochs=2", "optimizer=adam,sgd")
    side = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=2")
    done = train_tiny(tmp_path, *STUDY, *SMALL, *die, *side, env=HELPERS)
    # Of joblib's processes the first that dies ends the others: both trials may be lost.
    assert states(study_in(tmp_path / "study")) == ["COMPLETE", "COMPLETE"], done.stderr
    assert done.returncode == 0, done.stderr
    assert "trial 0 was killed: resuming it from its last checkpoint, once" in done.stdout
    assert "Traceback" not in done.stderr
    epochs = [row["epoch"] for row in rows_of(tmp_path / "study" / "0" / "metrics.csv") if row["val/accuracy"]]
    assert epochs == ["0", "1"]  # the first before it was killed, the second after


@pytest.fixture
def make_sweeper(tmp_path):
    """``make_sweeper(launch, n_trials, n_jobs)``: a sweeper in ``tmp_path`` whose launcher is that function."""

    def make(launch, n_trials, n_jobs=1):
        storage, pruner = f"sqlite:///{tmp_path / 'study.db'}", optuna.pruners.NopPruner()
        sampler = optuna.samplers.RandomSampler
        sweeper = OptunaSweeper(n_trials, n_jobs, "val/accuracy", storage, "fish_lightning", 0, sampler, pruner, None)
        sweeper.launcher = SimpleNamespace(launch=launch)
        sweeper.config = OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}})
        return sweeper

    return make


def run_trials(sweeper, folder):
    settings = {"metric": sweeper.metric, "space": {"x": "0 to 1"}, "typed": {}, "fixed": []}
    study = sweeper._study(settings, folder)
    sweeper._run(study, {"x": optuna.distributions.FloatDistribution(0, 1)}, [], folder)
    return study


def test_a_trial_that_is_killed_twice_has_failed(make_sweeper, tmp_path, capsys):
    launched = []

    def launch(jobs, first):
        for job in jobs:
            number = job[-1].removeprefix("hydra.sweep.subdir=")
            launched.append((number, job[0]))
            folder = tmp_path / number
            (folder / ".hydra").mkdir(parents=True, exist_ok=True)
            (folder / ".hydra" / "overrides.yaml").write_text(str(len(launched)))
            if number != "0":
                (folder / "summary.json").write_text(json.dumps({"val": {"accuracy": 0.5}}))
        raise RuntimeError("a job was killed")  # as joblib does

    study = run_trials(make_sweeper(launch, n_trials=2, n_jobs=2), tmp_path)
    assert states(study) == ["FAIL", "COMPLETE", "COMPLETE"]  # a failed trial does not count
    assert [number for number, _ in launched] == ["0", "1", "0", "2"]
    assert launched[0] == launched[2]  # with the same settings
    assert capsys.readouterr().out.count("trial 0 was killed: resuming it") == 1


@pytest.mark.parametrize("value", [None, float("nan")])
def test_a_trial_without_a_value_has_failed(make_sweeper, tmp_path, value):
    def launch(jobs, first):
        folder = tmp_path / str(first)
        (folder / ".hydra").mkdir(parents=True)
        (folder / ".hydra" / "overrides.yaml").touch()
        (folder / "summary.json").write_text(json.dumps({"val": {"accuracy": value}}))

    with pytest.raises(UserError, match="the last 5 trials have failed"):
        run_trials(make_sweeper(launch, n_trials=1), tmp_path)
    assert states(study_in(tmp_path)) == ["FAIL"] * 5


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("hydra.sweeper.n_trials=x", "hydra.sweeper.n_trials=x: expected an integer of at least 1"),
        ("hydra.sweeper.n_jobs=0", "hydra.sweeper.n_jobs=0: expected an integer of at least 1"),
        ("hydra.sweeper.metric=val/foo", "hydra.sweeper.metric=val/foo: expected one of val/accuracy"),
        ("hydra.sweeper.seed=null", "hydra.sweeper.seed=None: expected an integer of at least 0"),
        ("hydra.sweeper.study_name=null", "hydra.sweeper.study_name is empty"),
        ("hydra.sweeper.storage=sea://x", "hydra.sweeper.storage=sea://x cannot be opened"),
        ("hydra.sweeper.storage=/no/x.log", "hydra.sweeper.storage=/no/x.log cannot be opened"),
        ("hydra.sweeper.sampler.n_startup_trials=x", "hydra.sweeper.sampler cannot sample"),
        ("optimizer=adam,lion", "Could not find 'optimizer/lion'"),
        ("optimized_metric=val/acuracy", "optimized_metric=val/acuracy: expected val/accuracy"),
    ],
)
def test_a_wrong_setting_of_the_sweep_is_a_short_error(tmp_path, train_tiny, override, message):
    done = train_tiny(tmp_path, *STUDY, override)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_study_in_a_shared_storage_knows_its_folder(tmp_path, train_tiny):
    shared = (*SMALL, "optimizer=adam,sgd", "hydra.sweeper.n_trials=1", f"hydra.sweeper.storage={tmp_path}/study.log")
    first = train_tiny(tmp_path, *STUDY, *shared)
    assert first.returncode == 0, first.stderr
    second = train_tiny(tmp_path, *STUDY, *shared, "hydra.sweep.dir=other")
    assert second.returncode == 1
    assert "study.log are in study\nresume it with hydra.sweep.dir=study" in second.stderr
