"""The trainer as its config says, quiet, and short about a wrong setting."""

import logging
from types import SimpleNamespace

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from fish_lightning import hardware
from fish_lightning.cli import CONF
from fish_lightning.errors import UserError
from fish_lightning.training.trainer import build_trainer, resume_from


def trainer_config(*overrides):
    with initialize_config_dir(CONF, version_base="1.3"):
        return compose("train", ["paths.output=.", *overrides]).trainer


def test_arguments_reach_lightning(tmp_path):
    cfg = trainer_config("trainer=cpu", "trainer.max_steps=7", "trainer.precision=64-true", "gradient_clip=norm")
    trainer = build_trainer(cfg)
    assert (trainer.max_steps, trainer.precision) == (7, "64-true")
    assert (trainer.gradient_clip_val, trainer.gradient_clip_algorithm) == (1.0, "norm")


@pytest.mark.parametrize(("bf16", "precision"), [(True, "bf16-mixed"), (False, "32-true")])
def test_auto_precision_is_bf16_where_the_cpu_computes_it(monkeypatch, bf16, precision):
    monkeypatch.setattr(hardware, "cpu_has_bf16", lambda: bf16)
    assert build_trainer(trainer_config("trainer=cpu")).precision == precision


def test_auto_precision_of_an_evaluation_is_that_of_the_training_run():
    assert build_trainer(trainer_config("trainer=cpu"), precision="64-true").precision == "64-true"


def test_bf16_on_a_cpu_without_it_is_remarked(monkeypatch, capsys):
    monkeypatch.setattr("fish_lightning.training.trainer.cpu_has_bf16", lambda: False)
    build_trainer(trainer_config("trainer=cpu", "trainer.precision=bf16-mixed"))
    assert "no bf16 instructions; trainer.precision=32-true" in capsys.readouterr().out


@pytest.mark.parametrize("setting", ["trainer.accelerator=abacus", "trainer.precision=3-bit", "trainer.devices=-3"])
def test_a_refused_setting_is_a_short_error(setting):
    with pytest.raises(UserError, match=r"^trainer: ") as raised:
        build_trainer(trainer_config("trainer=cpu", setting))
    assert len(str(raised.value)) < 450


def test_lightnings_tips_stay_off_the_screen(capsys, caplog):
    build_trainer(trainer_config("trainer=cpu"))
    assert logging.getLogger("lightning.pytorch.utilities.rank_zero").level == logging.WARNING
    assert capsys.readouterr().err == ""
    assert "GPU available" not in caplog.text


def test_resuming_takes_a_file_a_run_folder_or_last(trained):
    folder, last = trained.folder, trained.folder / "checkpoints" / "last.ckpt"

    class Data:
        def load_state_dict(self, state):
            self.begun = state["seed"]

    class Model:
        def on_load_checkpoint(self, checkpoint):
            self.begun = checkpoint["hyper_parameters"]["name"]

    cfg = OmegaConf.load(folder / ".hydra" / "config.yaml")
    cfg.paths.output = str(folder)
    trainer = SimpleNamespace(precision="32-true", max_steps=-1, callbacks=[])
    assert resume_from(cfg, trainer, Data(), Model()) is None
    for ckpt in (str(last), str(folder), "last"):
        data, model = Data(), Model()
        cfg.ckpt = ckpt
        assert resume_from(cfg, trainer, data, model) == last
        assert (data.begun, model.begun) == (42, "shufflenet_v2_x0_5")
