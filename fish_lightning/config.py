"""Where the YAML files are: beside the package in a checkout, inside it in an installed wheel; and what is a number."""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from fish_lightning.errors import UserError
from fish_lightning.hardware import register_resolvers

_PACKAGE = Path(__file__).parent

#: Folder of the config groups, as :func:`hydra.main` wants it.
CONF = str(_PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent / "conf")

register_resolvers()

#: Whole numbers of all programs, and the least that each can be. Libraries ask for them late, in words of their own.
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
    """Refuse what cannot be a number of epochs, images or processes, before anything is done.

    Raises:
        UserError: with the key and its value.
    """
    for key, least in _WHOLE_NUMBERS.items():
        value = OmegaConf.select(cfg, key)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
            raise UserError(f"{key}={value}: it is a whole number, {least} or more")
