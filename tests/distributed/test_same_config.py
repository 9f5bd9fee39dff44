"""The settings that affect the results of a run, by name, and their hash."""

import pytest
from omegaconf import OmegaConf

from fish_lightning.distributed.same_config import fingerprint, settings

CFG = OmegaConf.create(
    {
        "seed": 1,
        "ckpt": None,
        "double": "${seed}",
        "data": {"num_workers": 0, "batch_size": 4, "list": [1, 2], "empty": {}},
    }
)


def test_settings_are_flat_resolved_and_named_as_on_the_command_line():
    assert settings(CFG) == {"seed": 1, "double": 1, "data.batch_size": 4, "data.list": [1, 2], "data.empty": {}}


@pytest.mark.parametrize("change", [{"data": {"num_workers": 8}}, {"ckpt": "last"}])
def test_settings_without_an_effect_do_not_change_the_hash(change):
    assert fingerprint(settings(OmegaConf.merge(CFG, change))) == fingerprint(settings(CFG))


@pytest.mark.parametrize(
    "change", [{"seed": 2}, {"data": {"batch_size": 8}}, {"data": {"list": [2, 1]}}, {"new": None}]
)
def test_any_other_setting_changes_the_hash(change):
    assert fingerprint(settings(OmegaConf.merge(CFG, change))) != fingerprint(settings(CFG))
    assert len(fingerprint(settings(CFG))) == 16
