"""Every choice of a group works with every experiment."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from fish_lightning.cli import CONF
from fish_lightning.settings.check import problems


def choices(group):
    return sorted(file.stem for file in Path(CONF, group).glob("*.yaml"))


@pytest.mark.parametrize("experiment", choices("experiment"))
def test_an_experiment_sets_nothing_that_another_choice_does_not_have(experiment):
    pairs = list(zip(choices("optimizer") * 2, choices("scheduler"), strict=False))
    for optimizer, scheduler in pairs:
        with initialize_config_dir(CONF, version_base="1.3"):
            words = [f"experiment={experiment}", f"optimizer={optimizer}", f"scheduler={scheduler}", "data.root=x"]
            assert problems(compose("train", words), "train") == []
