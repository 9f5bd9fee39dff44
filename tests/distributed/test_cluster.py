"""What a process knows from the environment variables of Slurm and torchrun."""

import pytest
from lightning.fabric.plugins.environments import SLURMEnvironment
from omegaconf import OmegaConf

from fish_lightning.distributed import cluster
from fish_lightning.errors import UserError
from fish_lightning.training.trainer import build_trainer


@pytest.fixture
def environment(monkeypatch):
    """``environment(SLURM_JOB_ID=1, …)`` sets these variables and no others of Slurm and torchrun."""

    def set_all(**variables):
        for name in list(cluster.os.environ):
            if name.startswith(("SLURM_", "TORCHELASTIC_")) or name in ("RANK", "LOCAL_RANK", "NODE_RANK"):
                monkeypatch.delenv(name)
        for name, value in variables.items():
            monkeypatch.setenv(name, str(value))

    set_all()
    return set_all


STEP = {"SLURM_NTASKS": 2, "SLURM_JOB_ID": 42, "SLURM_STEP_ID": 0, "SLURM_JOB_NAME": "fish"}


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ({}, "now"),
        (STEP, "slurm-42.0"),
        (STEP | {"SLURM_ARRAY_JOB_ID": 7, "SLURM_ARRAY_TASK_ID": 3, "SLURM_STEP_ID": 1}, "slurm-7_3.1"),
        (STEP | {"SLURM_JOB_NAME": "interactive"}, "now"),
        (STEP | {"SLURM_STEP_ID": 2**32 - 6}, "now"),  # a step of salloc, in which many runs are started
        ({"TORCHELASTIC_RUN_ID": "abc"}, "torchrun-abc"),
        ({"TORCHELASTIC_RUN_ID": "none"}, "now"),
    ],
)
def test_the_name_of_a_run_is_common_to_its_ranks(environment, variables, name):
    environment(**variables)
    assert cluster.run_name("now") == name


@pytest.mark.parametrize("name", ["fish", "bash", "interactive"])
def test_a_slurm_step_is_recognized_as_lightning_does(environment, name):
    environment(**STEP | {"SLURM_JOB_NAME": name})
    assert (cluster.run_name("now") != "now") == SLURMEnvironment.detect()


def test_restarts_count_in_a_slurm_step_only(environment):
    environment(**STEP, SLURM_RESTART_COUNT=3)
    assert cluster.slurm_restarts() == 3
    environment(SLURM_RESTART_COUNT=3)
    assert cluster.slurm_restarts() == 0


@pytest.mark.parametrize(
    ("variables", "first"),
    [
        ({}, True),
        ({"LOCAL_RANK": 0}, True),
        ({"LOCAL_RANK": 1}, False),
        ({"RANK": 4, "LOCAL_RANK": 0}, False),
        (STEP | {"SLURM_PROCID": 1}, False),
    ],
)
def test_the_first_process_of_a_run_is_known(environment, variables, first):
    environment(**variables)
    assert cluster.is_first_process() is first


@pytest.mark.parametrize(
    ("devices", "tasks"), [(4, 4), ("4", 4), ([0, 2], 2), ("0,2,3", 3), ("0,", 1), ("auto", 1), (-1, 1)]
)
def test_a_node_has_a_task_for_each_device(devices, tasks):
    assert cluster.tasks_per_node(devices) == tasks


def test_fewer_slurm_tasks_than_processes_are_an_error(environment):
    slurm = {"JOB_ID": 1, "JOB_NAME": "x", "NTASKS": 1, "PROCID": 0, "LOCALID": 0, "NODEID": 0, "NNODES": 1}
    environment(**{f"SLURM_{name}": value for name, value in slurm.items()})
    trainer = {"accelerator": "cpu", "devices": 2, "num_nodes": 1, "strategy": "ddp", "precision": "32-true"}
    cfg = OmegaConf.create({"_target_": "lightning.Trainer", **trainer})
    with pytest.raises(UserError, match=r"Slurm runs 1 task\(s\), but .* is 2\n.*--ntasks=2"):
        build_trainer(cfg)


@pytest.mark.parametrize("launched", [{"TORCHELASTIC_RUN_ID": "7"}, {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "2"}])
def test_a_sweep_started_several_times_is_an_error(tmp_path, train_tiny, launched):
    done = train_tiny(tmp_path, "seed=1,2", "-m", env={"SLURM_JOB_ID": "1"} | launched)
    assert done.returncode == 1
    assert done.stderr.startswith("error: a sweep starts the processes of its jobs itself: ")
    assert not (tmp_path / "logs").exists()
