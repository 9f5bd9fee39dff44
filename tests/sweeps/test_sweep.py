"""A grid through Hydra's multirun: a folder a job, one table."""

import csv
import json

import pytest
from conftest import TINY
from hydra.core.plugins import Plugins
from omegaconf import OmegaConf

from fish_lightning.cli import fingerprint
from fish_lightning.errors import UserError
from fish_lightning.report.run import finished
from fish_lightning.sweeps.grid_sweeper import launch_all
from fish_lightning.sweeps.study import alone_in


@pytest.fixture(scope="module")
def sweep(tmp_path_factory, run, tiny_data):
    cwd = tmp_path_factory.mktemp("sweep")
    short = ("trainer.max_epochs=1", "trainer.limit_train_batches=2", "scheduler=none")
    grid = ("optimizer=adam,sgd", "optimizer.lr=0.001,0.01")
    done = run("train", "-m", *TINY, f"data.root={tiny_data}", *grid, *short, cwd=cwd)
    assert done.returncode == 0, done.stderr
    (done.folder,) = (cwd / "logs" / "train" / "multiruns").iterdir()
    with (done.folder / "sweep.csv").open(newline="") as stream:
        done.rows = list(csv.DictReader(stream))
    return done


def test_each_job_of_the_grid_has_a_folder_and_a_row(sweep):
    assert sorted(path.name for path in sweep.folder.iterdir() if path.is_dir()) == ["0", "1", "2", "3"]
    assert {row["job"] for row in sweep.rows} == {"0", "1", "2", "3"}
    choices = {
        tuple(sorted(word for word in row["overrides"].split() if word.startswith("optimizer"))) for row in sweep.rows
    }
    grid = [("adam", 0.001), ("adam", 0.01), ("sgd", 0.001), ("sgd", 0.01)]
    assert choices == {(f"optimizer.lr={lr}", f"optimizer={kind}") for kind, lr in grid}
    assert {(row["optimizer"], float(row["optimizer.lr"])) for row in sweep.rows} == set(grid)  # to sort by


def test_rows_hold_the_jobs_own_numbers_best_first(sweep):
    values = [float(row["val/accuracy"]) for row in sweep.rows]
    assert values == sorted(values, reverse=True)
    for row in sweep.rows:
        summary = json.loads((sweep.folder / row["job"] / "summary.json").read_text())
        assert float(row["val/accuracy"]) == summary["val"]["accuracy"]
        assert float(row["test/accuracy"]) == summary["test"]["accuracy"]
        assert row["status"] == "done"


def test_the_table_is_printed(sweep):
    assert "sweep, best val/accuracy first" in sweep.stdout
    assert f"sweep folder  logs/train/multiruns/{sweep.folder.name}  (sweep.csv, sweep.png)" in sweep.stdout


@pytest.mark.slow
def test_a_job_that_fails_is_listed_and_does_not_end_the_sweep(tmp_path, run, tiny_data):
    short = ("trainer.max_epochs=1", "trainer.limit_train_batches=1", "test=false", "validate_first=false")
    grid = ("model.weights=absent.pth,null",)
    done = run("train", "-m", *TINY, f"data.root={tiny_data}", *grid, *short, cwd=tmp_path)
    assert "model.weights: no file absent.pth" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode == 1 and "error: 1 of 2 jobs failed" in done.stderr
    (folder,) = (tmp_path / "logs" / "train" / "multiruns").iterdir()
    with (folder / "sweep.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["job"], row["status"]) for row in rows] == [("1", "done"), ("0", "failed")]


ONCE = ("trainer.max_epochs=1", "trainer.limit_train_batches=2", "validate_first=false")


@pytest.mark.slow
def test_folds_test_each_image_once_and_are_pooled(tmp_path, train_tiny):
    done = train_tiny(tmp_path, "sweep=folds", "split=kfold", "split.folds=3", "data.photograph=.*", *ONCE)
    assert done.returncode == 0, done.stderr
    (file,) = tmp_path.glob("logs/train/multiruns/*/sweep.csv")
    with file.open(newline="") as stream:
        rows = {row["job"]: row for row in csv.DictReader(stream)}
    assert set(rows) == {"0", "1", "2", "mean", "sd", "pooled"}
    assert rows["pooled"]["test_images"] == "36"
    tested = [path for number in "012" for path in _tested(file.parent / number)]
    assert len(tested) == len(set(tested)) == 36
    assert "pooled" in done.stdout and "(of 3 jobs)" in done.stdout


def _tested(folder):
    with (folder / "test_predictions.csv").open(newline="") as stream:
        return [row["path"] for row in csv.DictReader(stream)]


@pytest.mark.slow
def test_seeds_on_submitit_have_a_mean_and_a_standard_deviation(tmp_path, train_tiny):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="the submitit extra is not installed")
    done = train_tiny(tmp_path, "sweep=seeds", "seed=range(2)", "hydra/launcher=submitit_local", "test=false", *ONCE)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "logs" / "train" / "multiruns").iterdir()
    with (folder / "sweep.csv").open(newline="") as stream:
        rows = {row["job"]: row for row in csv.DictReader(stream)}
    assert set(rows) == {"0", "1", "mean", "sd"}
    losses = [float(rows[job]["val/loss"]) for job in "01"]
    assert float(rows["mean"]["val/loss"]) == pytest.approx(sum(losses) / 2)
    assert float(rows["sd"]["val/loss"]) == pytest.approx(abs(losses[0] - losses[1]) / 2**0.5)
    assert list((folder / ".submitit").iterdir())


@pytest.mark.slow
def test_a_grid_that_was_stopped_runs_what_is_missing(tmp_path, train_tiny):
    grid = ("hydra.sweep.dir=grid", "test=false", "validate_first=false", "ckpt=auto", "-m")
    again = ("trainer.max_epochs=1", "seed=1,2", *grid)
    assert train_tiny(tmp_path, "trainer.max_epochs=1", "seed=1", *grid).returncode == 0
    written = (tmp_path / "grid" / "0" / "summary.json").stat().st_mtime_ns
    done = train_tiny(tmp_path, *again)
    assert done.returncode == 0, done.stderr
    assert "finished before: grid/0" in done.stdout and done.stdout.count("epoch 1/1") == 1
    assert (tmp_path / "grid" / "0" / "summary.json").stat().st_mtime_ns == written


def test_a_finished_run_with_other_settings_is_not_taken_for_this_one(tmp_path):
    cfg = OmegaConf.create({"seed": 1, "ckpt": "auto", "data": {"num_workers": 2}})
    assert finished(tmp_path, cfg) is None
    (tmp_path / "summary.json").write_text(json.dumps({"config": fingerprint(cfg)}))
    assert finished(tmp_path, OmegaConf.merge(cfg, {"ckpt": None, "data": {"num_workers": 0}}))
    with pytest.raises(UserError, match=r"ckpt=auto: .* holds a finished run with other settings"):
        finished(tmp_path, OmegaConf.merge(cfg, {"seed": 2}))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["-m", "optimizer.rl=1,2"], ("Could not override 'optimizer.rl'",)),
        (["-m", "fish=a,b"], ("Could not override 'fish'",)),
        (["-m", "optimizer=adam,lion"], ("Could not find 'optimizer/lion'", "sgd")),
        (["sweep=optuna", "optimizer.rl=interval(0,1)"], ("Could not override 'optimizer.rl'",)),
        (["sweep=optuna", "optimizer.lr=tag(log,interval(0,1))"], ("error: ", "Optuna cannot search it")),
        (["sweep=gird"], ("Could not find 'sweep/gird'", "grid")),
        (["-m", "experiment=onest", "seed=1"], ("Could not find 'experiment/onest'", "honest")),
        (["-m", "hydra/launcher=abacus", "seed=1"], ("Could not find 'hydra/launcher/abacus'", "joblib")),
    ],
)
def test_a_sweep_over_what_there_is_not_is_a_short_error(tmp_path, run, overrides, words):
    if "sweep=optuna" in overrides:
        pytest.importorskip("optuna", reason="the optuna extra is not installed")
    done = run("train", *overrides, cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert all(word in done.stderr for word in words), done.stderr
    assert not list(tmp_path.glob("logs/train/multiruns/*/*/*"))  # no job has begun


def test_more_devices_than_there_are_is_a_short_error(tmp_path, train_tiny):
    done = train_tiny(tmp_path, "trainer=gpu", "trainer.devices=64")
    assert done.returncode == 1
    assert done.stderr.startswith("error: trainer: ") and "Traceback" not in done.stderr


@pytest.mark.slow
def test_another_grid_in_the_folder_of_one_is_refused(tmp_path, train_tiny):
    few = ("hydra.sweep.dir=my grid", "trainer.fast_dev_run=true", "test=false")
    assert train_tiny(tmp_path, *few, "seed=1", "-m").returncode == 0
    begun = (tmp_path / "my grid" / "0" / ".hydra" / "overrides.yaml").stat().st_mtime_ns
    done = train_tiny(tmp_path, *few, "seed=2", "optimizer.lr=0.1", "-m")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "error: hydra.sweep.dir: my grid holds another sweep: with seed=1; without optimizer.lr=0.1; without seed=2",
        "choose another folder; with ckpt=auto jobs may be added to that one",
    ]
    assert (tmp_path / "my grid" / "0" / ".hydra" / "overrides.yaml").stat().st_mtime_ns == begun
    assert train_tiny(tmp_path, *few, "seed=1", "-m").returncode == 0  # the same again


def test_a_launcher_that_cannot_start_a_job_is_told_from_one_whose_job_dies(tmp_path, capsys):
    def launch(jobs, initial_job_idx):
        if jobs == [["seed=1"]]:
            (tmp_path / "1" / ".hydra").mkdir(parents=True)
            (tmp_path / "1" / ".hydra" / "overrides.yaml").write_text("[seed=1]")
        raise RuntimeError("no room in the cluster")

    assert launch_all(launch, tmp_path, [["seed=1"]], 1) == []
    assert capsys.readouterr().err == "error: RuntimeError: no room in the cluster\n"
    with pytest.raises(SystemExit, match="1"):  # the job of before is there, and none has begun now
        launch_all(launch, tmp_path, [["seed=2"]], 1)
    assert "hydra/launcher: no job could be started: RuntimeError: no room" in capsys.readouterr().err


def test_two_grids_in_one_folder_are_refused(tmp_path, train_tiny):
    (tmp_path / "grid").mkdir()
    with alone_in(tmp_path / "grid"):
        done = train_tiny(tmp_path, "seed=1,2", "hydra.sweep.dir=grid", "-m")
    assert done.returncode == 1
    assert done.stderr.startswith("error: hydra.sweep.dir: another sweep is running in grid")
    assert [path.name for path in (tmp_path / "grid").iterdir()] == [".lock"]


def test_more_processes_than_cores_is_a_short_error(tmp_path, train_tiny):
    done = train_tiny(tmp_path, "trainer=ddp", "trainer.devices=4096")
    assert done.returncode == 1
    assert done.stderr.startswith("error: trainer.devices=4096: this machine has ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_a_job_that_is_killed_leaves_the_others_their_table(tmp_path, train_tiny, faults, launcher):
    pytest.importorskip(f"hydra_plugins.hydra_{launcher.partition('_')[0]}_launcher", reason="an extra")
    kill = "+callbacks.kill={_target_:faults.KillAt,hook:on_train_batch_start,step:1},null"
    side = ("hydra.launcher.n_jobs=2",) if launcher == "joblib" else ()
    few = ("test=false", "validate_first=false", "trainer.max_epochs=1", "hydra.sweep.dir=grid")
    done = train_tiny(tmp_path, f"hydra/launcher={launcher}", *side, kill, *few, "-m", env=faults)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "sweep, best val/accuracy first" in done.stdout and "(failed)" in done.stdout
    # Of joblib's processes the first that dies ends the others.
    assert "jobs failed; see above" in done.stderr
    if launcher == "submitit_local":
        assert "error: 1 of 2 jobs failed" in done.stderr


@pytest.mark.parametrize(
    ("target", "package", "extra"),
    [
        ("fish_lightning.sweeps.optuna_sweeper.OptunaSweeper", "optuna>=4", "optuna"),
        ("hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher", "hydra-joblib-launcher", "joblib"),
        (
            "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher",
            "hydra-submitit-launcher",
            "submitit",
        ),
    ],
)
def test_a_plugin_that_is_not_installed_is_named_with_its_extra(monkeypatch, capsys, target, package, extra):
    monkeypatch.setattr("fish_lightning.sweeps.plugins.find_spec", lambda module: None)
    with pytest.raises(SystemExit, match="1"):
        Plugins.is_in_toplevel_plugins_module(target)
    said = capsys.readouterr().err
    assert f"pip install '{package}'" in said and f"the extra {extra}" in said
