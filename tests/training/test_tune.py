"""Finding settings: what is printed and drawn, that nothing is left, and what is refused."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from fish_lightning.cli import CONF
from fish_lightning.errors import UserError
from fish_lightning.settings.check import problems
from fish_lightning.training import tune
from fish_lightning.training.tune import Trial, expected_memory, smoothed, suggestion


def files_in(folder):
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


def tuned(cwd):
    """The folder of the only tuning in ``cwd``, and what it found."""
    (folder,) = (cwd / "logs" / "tune").iterdir()
    return folder, json.loads((folder / "tune.json").read_text())


def test_the_learning_rate_is_found_with_the_callbacks_of_a_run_and_nothing_is_left(tmp_path, train_tiny):
    settings = ("model.name=resnet18", "data.batch_size=8", "optimizer.layer_decay=0.9", "mix=mixup", "average=ema")
    done = train_tiny(tmp_path, *settings, "tune=lr", "tune.lowest=0.00001", "tune.steps=40")
    assert done.returncode == 0, done.stderr
    folder, found = tuned(tmp_path)
    rate = found["optimizer.lr"]
    assert done.stdout.splitlines()[-1] == f"optimizer.lr={rate:g}"
    assert 2e-5 < rate < found["marks"]["lowest"] < 0.1
    assert len(found["lr"]) == len(found["loss"]) <= 40 and found["lr"][0] == pytest.approx(1e-5)
    kept = [name for name in files_in(folder) if not name.startswith(".hydra/")]
    assert kept == ["plots/lr_find.png", "train.log", "tune.json"]
    assert files_in(tmp_path) == [f"logs/tune/{folder.name}/{name}" for name in files_in(folder)]


def test_the_batch_size_is_at_most_the_number_of_training_images(tmp_path, train_tiny):
    done = train_tiny(tmp_path, "tune=batch_size", "tune.start=4", "tune.steps=2")
    assert done.returncode == 0, done.stderr
    folder, found = tuned(tmp_path)
    assert [trial["batch_size"] for trial in found["trials"]] == [4, 8, 16]  # of 27 images
    assert done.stdout.splitlines()[-1] == "data.batch_size=16" and "there are 27 training images" in done.stdout
    assert all(trial["images_per_second"] > 0 and trial["memory"] > 1e8 for trial in found["trials"])
    assert (folder / "plots" / "batch_size.png").is_file() and not (folder / "checkpoints").exists()


@pytest.fixture
def sizes(tmp_path, monkeypatch):
    """``sizes(fits)``: the batch size that is found if a step of ``fits`` images still fits; what was tried."""
    tried = []

    def find(fits, memory_of_machine=1e12):
        cfg = OmegaConf.create({"paths": {"output": str(tmp_path)}, "trainer": {"accelerator": "cpu"}, "callbacks": {}})
        data = SimpleNamespace(catalog=SimpleNamespace(indices=lambda split: np.arange(1000)), batch_size=None)

        class Trainer:
            def __init__(self, clock):
                self.clock = clock

            def fit(self, model, datamodule):
                tried.append(datamodule.batch_size)
                if datamodule.batch_size > fits:
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB.")
                self.clock.images, self.clock.seconds = datamodule.batch_size, 1.0

        monkeypatch.setattr(tune, "build_model", lambda cfg, data: None)
        monkeypatch.setattr(tune, "save", lambda figure, path: None)
        monkeypatch.setattr(tune, "garbage_collection_cuda", lambda: None)  # a second, in the process of many tests
        monkeypatch.setattr(tune, "_trainer", lambda cfg, steps, clock: Trainer(clock))
        monkeypatch.setattr(tune, "memory", lambda: memory_of_machine)
        monkeypatch.setattr(tune, "peak_memory", lambda cuda: 10**9 + 10**6 * data.batch_size)
        return tune.batch_size(cfg, data, start=8, steps=2), tried

    return find


def test_the_batch_size_is_the_last_that_fits(sizes, capsys):
    assert sizes(100) == (64, [8, 16, 32, 64, 128])
    assert "128 does not fit; 64 is fastest" in capsys.readouterr().out


def test_a_size_that_a_cpu_would_be_killed_for_is_not_tried(sizes, capsys):
    assert sizes(10**6, memory_of_machine=1.4e9) == (256, [8, 16, 32, 64, 128, 256])
    assert "512 would take about 1.5 GB of 1.4 GB" in capsys.readouterr().out


def test_where_not_even_the_first_size_fits_there_is_an_error(sizes):
    with pytest.raises(UserError, match="8 does not fit in memory"):
        sizes(4)


def test_memory_is_expected_to_grow_linearly():
    assert expected_memory([Trial(8, 1.0, 1000), Trial(16, 1.0, 1080)]) == 1240


def test_the_suggestion_is_the_steepest_fall_before_the_lowest_loss():
    steps = np.arange(100.0)
    curve = 2.3 - 1.5 / (1 + np.exp(-(steps - 50) / 4)) + 3 / (1 + np.exp(-(steps - 80) / 2))
    chosen, best = suggestion(curve)
    assert chosen == 50 and 60 < best < 75
    assert suggestion(np.linspace(1.0, 2.0, 50)) == (None, 0)
    noisy = curve + np.random.default_rng(0).normal(0, 0.2, 100)
    assert abs(suggestion(smoothed(noisy, 8))[0] - 50) < 8


def test_smoothing_keeps_a_straight_line_and_does_not_lag():
    line = np.linspace(0.0, 1.0, 101)
    assert smoothed(line, 4)[20:80] == pytest.approx(line[20:80])
    impulse = np.zeros(101)
    impulse[50] = 1
    assert smoothed(impulse, 4).argmax() == 50


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tune=lr", "ckpt=last"], "ckpt=last: expected null, since tune trains new models"),
        (["tune=lr", "tune.lowest=1", "tune.highest=0.1"], "tune.lowest=1: expected less than tune.highest=0.1"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(words, said):
    with initialize_config_dir(CONF, version_base="1.3"):
        assert problems(compose("train", [*words, "paths.output=OUT"]), "train") == [said]


def test_several_processes_and_sweeps_are_refused(monkeypatch):
    cfg = OmegaConf.create({"trainer": {}, "callbacks": {}})
    monkeypatch.setattr(tune, "build_trainer", lambda cfg, callbacks: SimpleNamespace(world_size=2))
    with pytest.raises(UserError, match=r"trainer\.devices=1: 2 processes train"):
        tune._trainer(cfg, 10, None)
    monkeypatch.setattr(tune, "in_multirun", lambda: True)
    with pytest.raises(UserError, match="tune does not run in a sweep"):
        tune._trainer(cfg, 10, None)
