"""Grids, seeds and folds through Hydra's multirun: one folder per job, one table."""

import importlib
import json
import time
from urllib.request import Request, urlopen

import pytest
from helpers import rows_of, summary_of
from hydra.core.plugins import Plugins
from omegaconf import OmegaConf
from tensorboard.program import TensorBoard

from fish_lightning.distributed.same_config import fingerprint, settings
from fish_lightning.errors import UserError
from fish_lightning.resume.compatibility import finished
from fish_lightning.sweeps.grid_sweeper import launch_all
from fish_lightning.sweeps.study import sweep_lock

FEW = ("trainer.max_epochs=1", "trainer.limit_train_batches=2", "validate_first=false")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory, train_tiny):
    """A grid of four jobs, of which one fails."""
    cwd = tmp_path_factory.mktemp("sweep")
    done = train_tiny(cwd, "optimizer=adam,sgd", "model.weights=null,absent.pth", "scheduler=none", *FEW, "-m")
    (done.folder,) = (cwd / "logs" / "train" / "multiruns").iterdir()
    done.rows = rows_of(done.folder / "sweep.csv")
    return done


def test_each_job_of_the_grid_has_a_folder_and_a_row(sweep):
    assert sorted(path.name for path in sweep.folder.iterdir() if path.is_dir()) == ["0", "1", "2", "3"]
    assert {row["job"] for row in sweep.rows} == {"0", "1", "2", "3"}
    grid = {(name, weights) for name in ("adam", "sgd") for weights in ("null", "absent.pth")}
    assert {(row["optimizer"], row["model.weights"]) for row in sweep.rows} == grid  # to sort by


def test_rows_contain_the_jobs_own_metrics_best_first(sweep):
    done = [row for row in sweep.rows if row["status"] == "done"]
    values = [float(row["val/accuracy"]) for row in done]
    assert values == sorted(values, reverse=True) and len(values) == 2
    for row in done:
        summary = summary_of(sweep.folder / row["job"])
        assert float(row["val/accuracy"]) == summary["val"]["accuracy"]
        assert float(row["test/accuracy"]) == summary["test"]["accuracy"]


def test_a_job_that_fails_is_listed_last_and_does_not_end_the_sweep(sweep):
    assert [row["status"] for row in sweep.rows] == ["done", "done", "failed", "failed"]
    assert sweep.stderr.count("model.weights: no file absent.pth") == 2
    assert "Traceback" not in sweep.stderr
    assert sweep.returncode == 1 and "error: 2 of 4 jobs failed" in sweep.stderr


def test_the_table_is_printed(sweep):
    assert "sweep, best val/accuracy first" in sweep.stdout
    assert f"sweep folder  logs/train/multiruns/{sweep.folder.name}  (sweep.csv, sweep.png)" in sweep.stdout


def test_tensorboard_names_the_jobs_by_what_differs(sweep):
    board = TensorBoard()
    board.configure(argv=["", f"--logdir={sweep.folder}", "--port=0", "--load_fast=false"])
    url = board.launch()
    runs = [f"{number}/model.weights=null,optimizer={name}" for number, name in enumerate(("adam", "sgd"))]

    def answer(path, **query):
        body = json.dumps(query).encode() if query else None
        with urlopen(Request(url + path, body, {"Content-Type": "application/json"})) as stream:
            return json.load(stream)

    for _ in range(100):
        if answer("data/runs") == runs:
            break
        time.sleep(0.05)
    assert answer("data/runs") == runs
    query = {"allowedStatuses": ["STATUS_UNKNOWN"], "colParams": [], "startIndex": 0, "sliceSize": 9}
    groups = answer("data/plugin/hparams/session_groups", **query)["sessionGroups"]
    assert [group["name"] for group in groups] == [f"{run.replace('/', ' ')} ({sweep.folder.name})" for run in runs]


@pytest.mark.slow
def test_folds_test_each_image_once_and_are_pooled(tmp_path, train_tiny):
    done = train_tiny(tmp_path, "sweep=folds", "split=kfold", "split.folds=3", "data.photograph=.*", *FEW)
    assert done.returncode == 0, done.stderr
    (file,) = tmp_path.glob("logs/train/multiruns/*/sweep.csv")
    rows = {row["job"]: row for row in rows_of(file)}
    assert set(rows) == {"0", "1", "2", "mean", "sd", "pooled"}
    assert rows["pooled"]["test_images"] == "36"
    tested = [row["path"] for number in "012" for row in rows_of(file.parent / number / "test_predictions.csv")]
    assert len(tested) == len(set(tested)) == 36
    assert "pooled" in done.stdout and "(of 3 jobs)" in done.stdout


@pytest.mark.slow
def test_seeds_have_a_mean_and_a_standard_deviation_and_a_stopped_sweep_runs_what_is_missing(tmp_path, train_tiny):
    recipe = ("sweep=seeds", "hydra.sweep.dir=seeds", "ckpt=auto", "test=false", *FEW)
    assert train_tiny(tmp_path, *recipe, "seed=range(1)").returncode == 0
    written = (tmp_path / "seeds" / "0" / "summary.json").stat().st_mtime_ns
    done = train_tiny(tmp_path, *recipe, "seed=range(2)")
    assert done.returncode == 0, done.stderr
    assert "already finished: seeds/0" in done.stdout and done.stdout.count("epoch 1/1") == 1
    assert (tmp_path / "seeds" / "0" / "summary.json").stat().st_mtime_ns == written
    rows = {row["job"]: row for row in rows_of(tmp_path / "seeds" / "sweep.csv")}
    assert set(rows) == {"0", "1", "mean", "sd"}
    losses = [float(rows[job]["val/loss"]) for job in "01"]
    assert float(rows["mean"]["val/loss"]) == pytest.approx(sum(losses) / 2)
    assert float(rows["sd"]["val/loss"]) == pytest.approx(abs(losses[0] - losses[1]) / 2**0.5)


def test_a_finished_run_with_other_settings_is_an_error(tmp_path):
    cfg = OmegaConf.create({"seed": 1, "ckpt": "auto", "data": {"num_workers": 2}})
    assert finished(tmp_path, cfg) is None
    (tmp_path / "summary.json").write_text(json.dumps({"config": fingerprint(settings(cfg))}))
    assert finished(tmp_path, OmegaConf.merge(cfg, {"ckpt": None, "data": {"num_workers": 0}}))
    with pytest.raises(UserError, match=r"ckpt=auto: .* a finished run with other settings"):
        finished(tmp_path, OmegaConf.merge(cfg, {"seed": 2}))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["-m", "optimizer.rl=1,2"], ("optimizer.rl: no such setting; did you mean optimizer.lr?",)),
        (["-m", "fish=a,b"], ("fish: no such setting; --cfg job lists all",)),
        (["-m", "optimizer=adam,lion"], ("Could not find 'optimizer/lion'", "sgd")),
        (["sweep=optuna", "optimizer.rl=interval(0,1)"], ("optimizer.rl: no such setting",)),
        (["sweep=optuna", "optimizer.lr=tag(log,interval(0,1))"], ("error: ", "not supported by Optuna")),
        (["sweep=gird"], ("Could not find 'sweep/gird'", "grid")),
        (["-m", "experiment=onest", "seed=1"], ("Could not find 'experiment/onest'", "honest")),
        (["-m", "hydra/launcher=abacus", "seed=1"], ("Could not find 'hydra/launcher/abacus'", "joblib")),
    ],
)
def test_a_sweep_over_a_key_or_a_choice_that_does_not_exist_is_a_short_error(tmp_path, run, overrides, words):
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
def test_another_grid_in_the_folder_of_one_is_an_error(tmp_path, train_tiny):
    few = ("hydra.sweep.dir=my grid", "trainer.fast_dev_run=true", "test=false")
    assert train_tiny(tmp_path, *few, "seed=1", "-m").returncode == 0
    begun = (tmp_path / "my grid" / "0" / ".hydra" / "overrides.yaml").stat().st_mtime_ns
    done = train_tiny(tmp_path, *few, "seed=2", "optimizer.lr=0.1", "-m")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "error: hydra.sweep.dir: my grid contains another sweep: with seed=1; without optimizer.lr=0.1; without seed=2",
        "choose another folder, or add jobs to that sweep with ckpt=auto",
    ]
    assert (tmp_path / "my grid" / "0" / ".hydra" / "overrides.yaml").stat().st_mtime_ns == begun
    again = train_tiny(tmp_path, *few, "seed=1", "-m")
    assert again.returncode == 1 and "my grid already contains this sweep" in again.stderr
    assert train_tiny(tmp_path, *few, "seed=1", "ckpt=auto", "-m").returncode == 0


def test_a_launcher_that_cannot_start_a_job_is_told_from_one_whose_job_dies(tmp_path, capsys):
    def launch(jobs, initial_job_idx):
        if jobs == [["seed=1"]]:
            (tmp_path / "1" / ".hydra").mkdir(parents=True)
            (tmp_path / "1" / ".hydra" / "overrides.yaml").write_text("[seed=1]")
        raise RuntimeError("no room in the cluster")

    assert launch_all(launch, tmp_path, [["seed=1"]], 1) == []
    assert capsys.readouterr().err == "error: RuntimeError: no room in the cluster\n"
    with pytest.raises(SystemExit, match="1"):  # the job of before is there, and none has been started now
        launch_all(launch, tmp_path, [["seed=2"]], 1)
    assert "hydra/launcher: no job could be started: RuntimeError: no room" in capsys.readouterr().err


def test_two_grids_in_one_folder_at_a_time_are_an_error(tmp_path, train_tiny):
    (tmp_path / "grid").mkdir()
    with sweep_lock(tmp_path / "grid"):
        done = train_tiny(tmp_path, "seed=1,2", "hydra.sweep.dir=grid", "-m")
    assert done.returncode == 1
    assert done.stderr.startswith("error: hydra.sweep.dir: another sweep is running in grid")
    assert {path.name for path in (tmp_path / "grid").iterdir()} <= {".lock"}


def test_more_processes_than_cores_is_a_short_error(tmp_path, train_tiny):
    done = train_tiny(tmp_path, "trainer=ddp", "trainer.devices=4096")
    assert done.returncode == 1
    assert done.stderr.startswith("error: trainer.devices=4096: at most one process per core, and this machine has ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_the_other_jobs_of_a_killed_one_have_their_table(tmp_path, train_tiny, faults):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="the submitit extra is not installed")
    kill = "+callbacks.kill={_target_:faults.KillAt,hook:on_train_batch_start,step:1},null"
    job = ("hydra/launcher=submitit_local", "test=false", "hydra.sweep.dir=grid", "-m")
    done = train_tiny(tmp_path, *FEW, kill, *job, env=faults)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "sweep, best val/accuracy first" in done.stdout and "(failed)" in done.stdout
    assert "error: 1 of 2 jobs failed; see above" in done.stderr
    assert list((tmp_path / "grid" / ".submitit").iterdir())


@pytest.mark.parametrize(
    ("target", "package", "extra"),
    [
        ("fish_lightning.sweeps.optuna_sweeper.OptunaSweeper", "optuna>=4,<6", "optuna"),
        ("hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher", "hydra-joblib-launcher", "joblib"),
        (
            "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher",
            "hydra-submitit-launcher",
            "submitit",
        ),
    ],
)
def test_a_plugin_that_is_not_installed_is_named_with_its_extra(monkeypatch, capsys, target, package, extra):
    importlib.import_module("fish_lightning.cli")  # which registers the plugins
    monkeypatch.setattr("fish_lightning.sweeps.plugins.find_spec", lambda module: None)
    with pytest.raises(SystemExit, match="1"):
        Plugins.is_in_toplevel_plugins_module(target)
    said = capsys.readouterr().err
    assert f"pip install '{package}'" in said and f"'.[{extra}]'" in said
