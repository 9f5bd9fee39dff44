"""The jobs of a sweep are called in TensorBoard by what differs between them, and keep their names."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from fish_lightning.training.job_name import LONGEST, job_name
from fish_lightning.training.tensorboard import RunTensorBoardLogger


@pytest.fixture
def job(tmp_path):
    """``job(own, task, params)``: folder of a job with these overrides, of a sweep with these."""

    def make(own, task=(), params=None):
        (tmp_path / "3" / ".hydra").mkdir(parents=True, exist_ok=True)
        OmegaConf.save(OmegaConf.create(own), tmp_path / "3" / ".hydra" / "overrides.yaml")
        hydra = {"overrides": {"task": list(task)}, "sweeper": {"params": params}}
        OmegaConf.save(OmegaConf.create({"hydra": hydra}), tmp_path / "multirun.yaml")
        return tmp_path / "3"

    return make


@pytest.mark.parametrize(
    ("own", "task", "params", "name"),
    [
        (["seed=2", "data=folder", "optimizer.lr=0.01"], ["data=folder", "seed=1,2"], {"optimizer.lr": "0.1,0.01"}, ""),
        (["optimizer=adam", "data.root=/d"], ["optimizer=adam", "data.root=/d"], {}, "-"),
        (["optimizer.lr=0.0123456789"], [], {"optimizer.lr": "tag(log,interval(0.001,1))"}, "optimizer.lr=0.01235"),
        (["split.fold=1"], [], {"split.fold": "range(5)"}, "split.fold=1"),
        (["model.weights=/a/b/c.pth"], ["model.weights=null,/a/b/c.pth"], None, "model.weights=c.pth"),
        (["data.catalog='a b$.csv'"], ["data.catalog='a b$.csv','ß.csv'"], None, "data.catalog=_a_b_.csv_"),
        (["+optimizer.nesterov=true"], ["+optimizer.nesterov=true,false"], None, "optimizer.nesterov=true"),
    ],
)
def test_a_job_is_named_by_the_settings_that_its_sweep_varies(job, own, task, params, name):
    expected = {"": "seed=2,optimizer.lr=0.01", "-": ""}.get(name, name)
    assert job_name(job(own, task, params)) == expected


def test_a_name_is_short_enough_for_a_folder_and_that_of_a_single_run_is_its_folders(job, tmp_path):
    assert len(job_name(job([f"data.photograph={'x' * 300}"], [f"data.photograph={'x' * 300},y"]))) == LONGEST
    long = ["optimizer.weight_decay=0.00000123456", f"model.name={'x' * 80}"]
    assert job_name(job(long, long, dict.fromkeys(("optimizer.weight_decay", "model.name"), "1,2"))) == (
        f"weight_decay=1.235e-06,name={'x' * 72}"
    )
    (tmp_path / "multirun.yaml").unlink()
    assert job_name(tmp_path / "3") == "" and job_name(tmp_path / "absent") == ""


def test_a_resumed_job_keeps_its_name_where_the_sweep_varies_more_by_then(job):
    folder = job(["seed=1", "optimizer.lr=0.1"], ["seed=1,2", "optimizer.lr=0.1"])
    first = RunTensorBoardLogger(folder)
    first.log_metrics({"loss": 1.0}, 0)
    first.finalize("stopped")
    again = RunTensorBoardLogger(job(["seed=1", "optimizer.lr=0.1"], ["seed=1,2", "optimizer.lr=0.1,0.2"]))
    assert Path(first.log_dir) == Path(again.log_dir) == folder / "seed=1"
