"""What all entry points share: the config folder, resolvers and plugins registered with Hydra, checks of integers.

Imported at every start, also for ``--help``: nothing heavier than Hydra belongs here.
"""

import sys
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from fish_lightning.distributed.cluster import run_name, tasks_per_node
from fish_lightning.errors import UserError
from fish_lightning.hardware import default_workers, fused, uses_cuda
from fish_lightning.resume.folders import config_folder, run_folder
from fish_lightning.sweeps.plugins import register_plugins

_PACKAGE = Path(__file__).parent

#: Folder of the config groups, as :func:`hydra.main` takes it: beside the package in a checkout, inside it in a wheel.
CONF = str(_PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent / "conf")

#: OmegaConf resolvers, for ``${workers:…}``, ``${run_folder:…}`` and so on in the YAML.
_RESOLVERS = {
    "config_folder": config_folder,
    "fused": fused,
    "on_a_terminal": sys.stdout.isatty,
    "run_folder": run_folder,
    "run_name": run_name,
    "tasks": tasks_per_node,
    "uses_cuda": uses_cuda,
    "workers": default_workers,
}

#: Integer settings of all programs and their minimum. Libraries check them late, with errors that name no key.
_WHOLE_NUMBERS = {
    "seed": 0,
    "batch_size": 1,
    "num_workers": 0,
    "data.batch_size": 1,
    "data.num_workers": 0,
    "data.prefetch_factor": 1,
    "transforms.height": 1,
    "transforms.width": 1,
    "trainer.max_epochs": -1,
    "trainer.min_epochs": 0,
    "trainer.max_steps": -1,
    "trainer.min_steps": 0,
    "trainer.num_nodes": 1,
    "trainer.log_every_n_steps": 0,
    "trainer.check_val_every_n_epoch": 1,
    "trainer.accumulate_grad_batches": 1,
    "trainer.num_sanity_val_steps": -1,
}


def require_whole_numbers(cfg: DictConfig) -> None:
    """Check the integer settings before anything is done.

    Raises:
        UserError: one is no integer, or below its minimum.
    """
    for key, least in _WHOLE_NUMBERS.items():
        value = OmegaConf.select(cfg, key)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
            raise UserError(f"{key}={value}: expected a whole number, {least} or more")


for _name, _resolver in _RESOLVERS.items():
    OmegaConf.register_new_resolver(_name, _resolver, replace=True)
register_plugins()
