"""Runs of several processes: alone, in a multirun, under torchrun, and against the same run in one process."""

import csv
import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import REPOSITORY, TINY

DDP = ("trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu", "trainer.max_epochs=1", "validate_first=false")
SPY = ("+callbacks.spy._target_=rank_callbacks.Spy",)
HELPERS = {"PYTHONPATH": os.pathsep.join([str(REPOSITORY / "tests"), os.environ.get("PYTHONPATH", "")])}


def ranks_of(folder):
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in (0, 1)]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory, train_tiny):
    """Four jobs of two processes each; in the first two one of them dies."""
    cwd = tmp_path_factory.mktemp("ddp")
    jobs = ("+callbacks.die._target_=rank_callbacks.Die", "+callbacks.die.rank=0,1,null,2", "data.batch_size=5")
    done = train_tiny(cwd, *DDP, *SPY, *jobs, "-m", env=HELPERS)
    (done.folder,) = (cwd / "logs" / "train" / "multiruns").iterdir()
    done.cwd = cwd
    return done


@pytest.mark.slow
def test_a_rank_that_dies_ends_its_job_and_not_the_sweep(sweep):
    with (sweep.folder / "sweep.csv").open(newline="") as stream:
        status = {row["job"]: row["status"] for row in csv.DictReader(stream)}
    assert status == {"0": "failed", "1": "failed", "2": "done", "3": "done"}
    for job in (0, 1):
        assert f"error: job {job}, a process of its own, " in sweep.stderr
    assert "error: 2 of 4 jobs failed" in sweep.stderr
    assert sweep.returncode == 1
    assert "Traceback" not in sweep.stderr


@pytest.mark.slow
def test_each_job_of_a_multirun_has_one_folder_and_its_own_config(sweep):
    assert sorted(path.name for path in (sweep.cwd / "logs" / "train").iterdir()) == ["multiruns"]
    assert sorted(path.name for path in sweep.folder.iterdir() if path.is_dir()) == ["0", "1", "2", "3"]
    ports = set()
    for job in ("2", "3"):
        first, second = ranks_of(sweep.folder / job)
        assert first == second
        ports.add(first["port"])
        assert json.loads((sweep.folder / job / "summary.json").read_text())["processes"] == 2
        assert len(list((sweep.folder / job).glob("plots/*.png"))) == 4
    assert len(ports) == 2  # a process group of its own for each
    assert sweep.stdout.count("95 % interval") == 2  # written and said by rank 0 alone


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_jobs_of_several_processes_run_on_other_launchers(tmp_path, train_tiny, launcher):
    pytest.importorskip(f"hydra_plugins.hydra_{launcher.partition('_')[0]}_launcher", reason="an extra")
    side = ("hydra.launcher.n_jobs=2",) if launcher == "joblib" else ()
    jobs = ("optimizer.weight_decay=0.01,0.02", "data.batch_size=5", "test=false", "hydra.sweep.dir=sweep", "-m")
    done = train_tiny(tmp_path, *DDP, *SPY, f"hydra/launcher={launcher}", *side, *jobs, env=HELPERS)
    assert done.returncode == 0, done.stderr
    ports = set()
    for job, decay in (("0", 0.01), ("1", 0.02)):
        first, second = ranks_of(tmp_path / "sweep" / job)
        assert first == second and first["weight_decay"] == decay
        ports.add(first["port"])
    assert len(ports) == 2
    assert sorted(path.name for path in (tmp_path / "sweep").iterdir() if path.name.isdigit()) == ["0", "1"]
    assert not (tmp_path / "logs").exists()


@pytest.mark.slow
def test_two_processes_of_half_a_batch_train_as_one_of_a_whole(tmp_path, train_tiny, make_folder):
    data = make_folder(tmp_path / "fish", classes=2, per_class=16)  # 24 to train on, 3 and 5 to validate and test
    same = (*SPY, "+callbacks.frozen._target_=rank_callbacks.FrozenBatchNorm", "validate_first=false")
    one, two = f"hydra.run.dir={tmp_path}/one", f"hydra.run.dir={tmp_path}/two"
    alone = train_tiny(tmp_path, *same, "trainer.max_epochs=1", one, "data.batch_size=8", data=data, env=HELPERS)
    assert alone.returncode == 0, alone.stderr
    both = train_tiny(tmp_path, *DDP, *same, two, "data.batch_size=4", data=data, env=HELPERS)
    assert both.returncode == 0, both.stderr
    whole = json.loads((tmp_path / "one" / "rank-0.json").read_text())["losses"]
    halves = ranks_of(tmp_path / "two")[0]["losses"]
    assert halves == pytest.approx(whole, rel=1e-5) and len(whole) == 3
    summaries = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("one", "two")]
    first, second = (summary["test"] for summary in summaries)
    assert first["n"] == second["n"] == 5 and first["confusion_matrix"] == second["confusion_matrix"]
    assert second["loss"] == pytest.approx(first["loss"], rel=1e-5)
    assert summaries[1]["val"] == pytest.approx(summaries[0]["val"], rel=1e-5)
    paths = []
    for name in ("one", "two"):
        with (tmp_path / name / "test_predictions.csv").open(newline="") as stream:
            paths.append([row["path"] for row in csv.DictReader(stream)])
    assert paths[0] == paths[1] and len(set(paths[1])) == 5


@pytest.mark.slow
def test_processes_with_other_settings_stop_before_the_first_step(tmp_path, train_tiny):
    tampered = "optimizer.weight_decay='${oc.decode:${oc.env:LOCAL_RANK,0}}'"
    done = train_tiny(tmp_path, *DDP, tampered, "hydra.run.dir=run")
    assert done.returncode != 0
    assert "do not have the same config: optimizer.weight_decay (0 / 1)" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.slow
@pytest.mark.parametrize("hook", ["on_before_optimizer_step", "on_validation_end"])
def test_a_signal_to_one_process_stops_all_after_the_same_step(tmp_path, train_tiny, faults, hook):
    send = f"+callbacks.send={{_target_:faults.Send,hook:{hook},step:1,number:15,rank:1}}"
    again = (
        "trainer.val_check_interval=1",
        "data.batch_size=5",
        "trainer.max_epochs=2",
        "hydra.run.dir=run",
        "test=false",
    )
    done = train_tiny(tmp_path, *DDP, *again, send, env=faults)
    assert done.returncode == 143, done.stderr
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert done.stderr.splitlines() == [
        "error: stopped by SIGTERM at step 2 of 6; everything up to it is in run/checkpoints/last.ckpt",
        "go on with the same command and:  ckpt=run/checkpoints/last.ckpt",
    ]
    assert torch.load(last, weights_only=True)["global_step"] == 2
    assert train_tiny(tmp_path, *DDP, *again, "ckpt=last").returncode == 0
    assert train_tiny(tmp_path, *DDP, *again, "hydra.run.dir=whole").returncode == 0
    resumed, whole = (tmp_path / name for name in ("run", "whole"))
    assert (resumed / "metrics.csv").read_text() == (whole / "metrics.csv").read_text()
    states = [torch.load(at / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for at in (resumed, whole)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[1])


@pytest.mark.slow
def test_a_process_that_can_read_no_image_of_a_batch_does_not_keep_the_other_waiting(tmp_path, train_tiny, make_folder):
    for split in ("train", "val", "test"):
        make_folder(tmp_path / "fish" / split, classes=2, per_class=4)
    for file in sorted((tmp_path / "fish" / "train").rglob("*.png"))[::2]:
        file.write_bytes(b"no image")
    skip = ("data.on_error=skip", "data.batch_size=1", "model.name=squeezenet1_1", "hydra.run.dir=run")
    size = ("transforms.height=64", "transforms.width=64")
    done = train_tiny(tmp_path, *DDP, *skip, *size, data=tmp_path / "fish")
    assert done.returncode == 0, done.stderr
    assert len(json.loads((tmp_path / "run" / "summary.json").read_text())["unreadable_images"]) == 4


@pytest.mark.slow
def test_torchrun_starts_the_ranks_of_one_run_in_one_folder(tmp_path, tiny_data):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    program = ["-m", "fish_lightning.train", *TINY, *DDP, *SPY, f"data.root={tiny_data}", "data.batch_size=5"]
    environment = os.environ | HELPERS | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*torchrun, *program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=200
    )
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "logs" / "train" / "runs").iterdir()
    assert folder.name.startswith("torchrun-")
    assert ranks_of(folder)[0] == ranks_of(folder)[1]


@pytest.mark.parametrize("launched", [{"TORCHELASTIC_RUN_ID": "7"}, {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "2"}])
def test_a_sweep_started_several_times_at_once_is_refused(tmp_path, train_tiny, launched):
    done = train_tiny(tmp_path, "seed=1,2", "-m", env={"SLURM_JOB_ID": "1"} | launched)
    assert done.returncode == 1
    assert done.stderr.startswith("error: a sweep starts the processes of its jobs itself: ")
    assert not (tmp_path / "logs").exists()


HOLD = """
import sys, time
from omegaconf import OmegaConf
from fish_lightning.distributed.jobs import run_folder_lock
with run_folder_lock(OmegaConf.create({"paths": {"output": sys.argv[1]}})):
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
    assert second.stdout.readline() == f"waiting for another program that trains in {tmp_path}\n"
    first.kill()  # -9: the dead hold nothing
    first.wait()
    assert second.communicate(timeout=60)[0] == "in\nout\n"


def test_the_other_ranks_of_a_run_do_not_wait_for_the_first(tmp_path):
    first = hold(tmp_path, 60)
    assert first.stdout.readline() == "in\n"
    assert hold(tmp_path, 0, {"LOCAL_RANK": "1"}).communicate(timeout=60)[0] == "in\nout\n"
    first.kill()
    first.wait()


def test_fewer_slurm_tasks_than_processes_are_refused_before_they_wait_for_one_another(monkeypatch):
    from omegaconf import OmegaConf

    from fish_lightning.errors import UserError
    from fish_lightning.training.trainer import build_trainer

    slurm = {"JOB_ID": 1, "JOB_NAME": "x", "NTASKS": 1, "PROCID": 0, "LOCALID": 0, "NODEID": 0, "NNODES": 1}
    for name, value in slurm.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    trainer = {"accelerator": "cpu", "devices": 2, "num_nodes": 1, "strategy": "ddp", "precision": "32-true"}
    cfg = OmegaConf.create({"_target_": "lightning.Trainer", **trainer})
    with pytest.raises(UserError, match=r"Slurm runs 1 task\(s\), .* ask for 2\n.*--ntasks=2"):
        build_trainer(cfg)
