"""The trainer has the settings of its config, is quiet, and reports a wrong setting briefly."""

import logging

import pytest
from hydra import compose, initialize_config_dir

from fish_lightning import hardware
from fish_lightning.cli import CONF
from fish_lightning.errors import UserError
from fish_lightning.training.trainer import build_trainer


def trainer_config(*overrides):
    with initialize_config_dir(CONF, version_base="1.3"):
        return compose("train", ["paths.output=.", *overrides]).trainer


def test_arguments_reach_lightning(tmp_path):
    cfg = trainer_config("trainer=cpu", "trainer.max_steps=7", "trainer.precision=64-true", "gradient_clip=norm")
    trainer = build_trainer(cfg)
    assert (trainer.max_steps, trainer.precision) == (7, "64-true")
    assert (trainer.gradient_clip_val, trainer.gradient_clip_algorithm) == (1.0, "norm")


@pytest.mark.parametrize(("bf16", "precision"), [(True, "bf16-mixed"), (False, "32-true")])
def test_auto_precision_is_bf16_if_the_cpu_supports_it(monkeypatch, bf16, precision):
    monkeypatch.setattr(hardware, "cpu_has_bf16", lambda: bf16)
    assert build_trainer(trainer_config("trainer=cpu")).precision == precision


def test_auto_precision_of_an_evaluation_is_that_of_the_training_run():
    assert build_trainer(trainer_config("trainer=cpu"), precision="64-true").precision == "64-true"


def test_bf16_on_a_cpu_without_it_prints_a_note(monkeypatch, capsys):
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
