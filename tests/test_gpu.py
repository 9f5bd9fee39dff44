"""What only a GPU can show: runs on one learn, resume and clip, with fused optimizers and bf16."""

import json

import pytest

pytestmark = pytest.mark.gpu
ON_GPU = ("trainer.accelerator=gpu", "trainer.precision=auto", "trainer.max_epochs=6")


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


@pytest.mark.parametrize("clip", ["value", "norm", "none"])
@pytest.mark.parametrize("augment", ["cpu", "gpu"])
def test_a_run_on_a_gpu_learns(tmp_path, train_tiny, augment, clip):
    done = train_tiny(tmp_path, *ON_GPU, f"augment={augment}", f"gradient_clip={clip}", "hydra.run.dir=R")
    assert done.returncode == 0, done.stderr
    found = summary(tmp_path / "R")
    assert found["device"] == "cuda" and found["test"]["accuracy"] > 0.5


def test_the_optimizer_is_fused(tmp_path, train_tiny):
    import torch

    done = train_tiny(tmp_path, *ON_GPU, "trainer.max_epochs=1", "hydra.run.dir=R")
    assert done.returncode == 0, done.stderr
    state = torch.load(tmp_path / "R" / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["optimizer_states"][0]["param_groups"][0]["fused"] is True


def test_a_run_on_a_gpu_is_resumed_within_an_epoch(tmp_path, train_tiny):
    stopped = train_tiny(tmp_path, *ON_GPU, "trainer.max_time=00:00:00:01", "hydra.run.dir=R")
    assert stopped.returncode == 0, stopped.stderr
    done = train_tiny(tmp_path, *ON_GPU, "trainer.max_time=null", "hydra.run.dir=R", "ckpt=last")
    assert done.returncode == 0, done.stderr
    assert summary(tmp_path / "R")["epochs"] == 6


def test_a_compiled_network_trains_and_is_tested(tmp_path, train_tiny):
    done = train_tiny(tmp_path, *ON_GPU, "model.compile=true", "hydra.run.dir=R")
    assert done.returncode == 0, done.stderr
    assert summary(tmp_path / "R")["test"]["n"] > 0
