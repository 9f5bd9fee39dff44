"""Runs whose processes Lightning, torchrun or a launcher starts: alone and as jobs of a multirun."""

import os
import signal
import subprocess
import sys

import pytest
from helpers import (
    DDP,
    HELPERS,
    REPOSITORY,
    SHORT,
    TINY,
    checkpoint_of,
    ranks_of,
    rows_of,
    run_folder,
    same,
    summary_of,
)
from omegaconf import OmegaConf

from fish_lightning.distributed import jobs
from fish_lightning.errors import UserError

SPY = ("+callbacks.spy._target_=rank_callbacks.Spy",)
ONCE = ("trainer.max_epochs=1", "data.batch_size=5", *SHORT)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory, train_tiny):
    """Two jobs of two processes each; in the first one rank 1 dies."""
    cwd = tmp_path_factory.mktemp("ddp")
    die = ("+callbacks.die._target_=rank_callbacks.Die", "+callbacks.die.rank=1,null")
    done = train_tiny(cwd, *DDP, *ONCE[:3], *SPY, *die, "-m", env=HELPERS)
    (done.folder,) = (cwd / "logs" / "train" / "multiruns").iterdir()
    done.cwd = cwd
    return done


@pytest.mark.slow
def test_a_rank_that_dies_ends_its_job_and_not_the_sweep(sweep):
    assert {row["job"]: row["status"] for row in rows_of(sweep.folder / "sweep.csv")} == {
        "0": "failed",
        "1": "done",
    }
    assert "error: job 0 " in sweep.stderr and "; see above" in sweep.stderr
    assert "error: 1 of 2 jobs failed" in sweep.stderr
    assert sweep.returncode == 1
    assert "Traceback" not in sweep.stderr


@pytest.mark.slow
def test_each_job_of_a_multirun_has_one_folder_and_its_own_config(sweep):
    assert sorted(path.name for path in (sweep.cwd / "logs" / "train").iterdir()) == ["multiruns"]
    assert sorted(path.name for path in sweep.folder.iterdir() if path.is_dir()) == ["0", "1"]
    first, second = ranks_of(sweep.folder / "1")
    assert first == second
    assert summary_of(sweep.folder / "1")["processes"] == 2
    assert len(list((sweep.folder / "1").glob("plots/*.png"))) == 4
    assert sweep.stdout.count("macro F1") == 1  # printed by rank 0 only


@pytest.mark.slow
def test_trials_of_several_processes_run_in_parallel_on_joblib_and_share_their_settings(tmp_path, train_tiny):
    optuna = pytest.importorskip("optuna", reason="the optuna extra is not installed")
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="the joblib extra is not installed")
    side = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.sweeper.n_jobs=2", "hydra.sweeper.n_trials=2")
    study = ("sweep=optuna", "hydra.sweep.dir=study", "optimizer=adam,sgd", "gradient_clip=value")
    done = train_tiny(tmp_path, *study, *side, *DDP, *ONCE, *SPY, env=HELPERS)
    assert done.returncode == 0, done.stderr
    ports = set()
    storage = optuna.storages.RDBStorage(f"sqlite:///{tmp_path / 'study' / 'study.db'}")
    for trial in optuna.load_study(study_name="fish_lightning", storage=storage).get_trials():
        first, second = ranks_of(tmp_path / "study" / str(trial.number))
        assert first == second
        assert first["weight_decay"] == trial.params["optimizer.weight_decay"]
        assert first["label_smoothing"] == trial.params["model.label_smoothing"]
        assert first["optimizer"].lower() == trial.params["optimizer"]
        assert trial.state.name == "COMPLETE" and trial.intermediate_values.keys() == {1}
        ports.add(first["port"])
    assert len(ports) == 2
    assert sorted(path.name for path in (tmp_path / "study").iterdir() if path.name.isdigit()) == ["0", "1"]
    assert not (tmp_path / "logs").exists()


@pytest.mark.slow
def test_a_job_of_several_processes_runs_on_submitit(tmp_path, train_tiny):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="the submitit extra is not installed")
    job = ("hydra/launcher=submitit_local", "optimizer.weight_decay=0.01", "hydra.sweep.dir=sweep", "-m")
    done = train_tiny(tmp_path, *DDP, *SPY, *ONCE, *job, env=HELPERS)
    assert done.returncode == 0, done.stderr
    first, second = ranks_of(tmp_path / "sweep" / "0")
    assert first == second and first["weight_decay"] == 0.01
    assert not (tmp_path / "logs").exists()


@pytest.mark.slow
def test_torchrun_starts_the_ranks_of_one_run_in_one_folder(tmp_path, tiny_data, run):
    program = ("-m", "fish_lightning.train", *TINY, *DDP, *SPY, *ONCE, f"data.root={tiny_data}")
    done = run("torch.distributed.run", "--standalone", "--nproc-per-node=2", *program, cwd=tmp_path, env=HELPERS)
    assert done.returncode == 0, done.stderr
    folder = run_folder(tmp_path)
    assert folder.name.startswith("torchrun-")
    assert ranks_of(folder)[0] == ranks_of(folder)[1]


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_after_the_same_step(tmp_path, train_tiny, train_ranks, faults):
    def send(hook):
        return f"+callbacks.send={{_target_:faults.Send,hook:{hook},step:1,number:15,rank:1}}"

    groups = ("mix=both", "average=ema", "balance=photograph", "data.photograph='[0-9]'")
    recipe = ("trainer.val_check_interval=1", "data.batch_size=5", "trainer.max_epochs=2", *groups, *SHORT)
    # Lightning starts the other process.
    done = train_tiny(tmp_path, *DDP, *recipe, "hydra.run.dir=run", send("on_before_optimizer_step"), env=faults)
    assert done.returncode == 143, done.stderr
    assert done.stderr.splitlines() == [
        "error: stopped by SIGTERM at step 2 of 6, saved in run/checkpoints/last.ckpt",
        "resume with python -m fish_lightning.train ckpt=run",
    ]
    both = train_ranks(tmp_path, *recipe, "hydra.run.dir=other", send("on_validation_end"), env=faults)
    assert [rank.returncode for rank in both] == [143, 143], both[0].stderr
    stopped, other = (checkpoint_of(tmp_path / name) for name in ("run", "other"))
    assert stopped["global_step"] == other["global_step"] == 2
    assert same(stopped["state_dict"], other["state_dict"])

    for overrides in (["hydra.run.dir=run", "ckpt=last"], ["hydra.run.dir=whole"]):
        both = train_ranks(tmp_path, *recipe, *overrides)
        assert [rank.returncode for rank in both] == [0, 0], both[0].stderr
    resumed, whole = (tmp_path / name for name in ("run", "whole"))
    assert (resumed / "metrics.csv").read_text() == (whole / "metrics.csv").read_text()
    assert same(checkpoint_of(resumed)["state_dict"], checkpoint_of(whole)["state_dict"])


class Killed:
    """A job that a signal has ended."""

    pid = 2**22 + 1

    def __init__(self, *_, **settings):
        assert settings["start_new_session"] and "LOCAL_RANK" not in settings["env"]

    def wait(self):
        return self.code


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (-signal.SIGKILL, "job 3 was killed by signal 9 (possibly out of memory); see above"),
        (-signal.SIGSEGV, "job 3 was killed by signal 11; see above"),
        (1, "job 3 exited with code 1; see above"),
    ],
)
def test_it_is_told_how_a_job_ended(tmp_path, monkeypatch, code, words):
    monkeypatch.setattr(Killed, "code", code, raising=False)
    monkeypatch.setattr(jobs.subprocess, "Popen", Killed)
    monkeypatch.setattr(jobs, "get_original_cwd", lambda: tmp_path)
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setattr(
        jobs.HydraConfig,
        "get",
        lambda: OmegaConf.create({"job": {"num": 3, "name": "train", "chdir": False}, "job_logging": {}}),
    )
    with pytest.raises(UserError) as raised:
        jobs.run_in_own_process(OmegaConf.create({"paths": {"output": str(tmp_path)}}))
    assert str(raised.value) == words


HOLD = """
import sys, time
from pathlib import Path
from fish_lightning.resume.folders import run_folder_lock
with run_folder_lock(Path(sys.argv[1])):
    print("in", flush=True)
    time.sleep(float(sys.argv[2]))
    print("out", flush=True)
"""


def hold(folder, seconds, env=None):
    command = [sys.executable, "-c", HOLD, folder, str(seconds)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)} | (env or {})
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def test_a_second_program_waits_for_the_one_that_trains_in_the_folder(tmp_path):
    first = hold(tmp_path, 60)
    assert first.stdout.readline() == "in\n"
    second = hold(tmp_path, 0)
    assert second.stdout.readline() == f"waiting for another program that is training in {tmp_path}\n"
    # The other ranks of a run do not wait for the first.
    assert hold(tmp_path, 0, {"LOCAL_RANK": "1"}).communicate(timeout=60)[0] == "in\nout\n"
    first.kill()  # -9: the lock is released
    first.wait()
    assert second.communicate(timeout=60)[0] == "in\nout\n"


#: Starts Python as where these do not exist, on Windows.
WINDOWS = """
import os, select, signal
del os.killpg, select.poll, signal.SIGKILL, signal.SIGALRM, signal.SIGUSR1, signal.SIGPIPE
"""
#: Ends a job of another process, and one that has ended.
END = """
import os, signal, subprocess, sys
from fish_lightning.distributed import jobs
assert not hasattr(os, "killpg") and not hasattr(signal, "SIGKILL")
process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
for _ in range(2):
    jobs._signal_group(process.pid, jobs._KILL)
    print(process.wait())
"""


def test_a_run_and_the_end_of_a_job_need_no_signals_that_windows_lacks(tmp_path, train_tiny):
    (tmp_path / "sitecustomize.py").write_text(WINDOWS)
    environment = {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(REPOSITORY)])}
    done = train_tiny(tmp_path, *ONCE, env=environment)
    assert done.returncode == 0, done.stderr
    assert summary_of(run_folder(tmp_path))["processes"] == 1
    command = [sys.executable, "-c", END]
    ended = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=True)
    assert ended.stdout.split() == [str(-signal.SIGTERM)] * 2
