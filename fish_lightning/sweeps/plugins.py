"""Our sweepers made known to Hydra, and a word about launchers whose package is not installed.

Imported at every start: Hydra alone.
"""

import warnings
from importlib.util import find_spec

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins

from fish_lightning import compat
from fish_lightning.errors import UserError, end_with
from fish_lightning.sweeps.grid_sweeper import GridSweeper
from fish_lightning.sweeps.optuna_sweeper import OptunaSweeper

#: What a plugin's class path begins with: the module that it needs, the package and our extra that install it.
_NEEDS = {
    OptunaSweeper.__module__: ("optuna", "optuna>=4", "optuna"),
    "hydra_plugins.hydra_joblib_launcher": ("hydra_plugins.hydra_joblib_launcher", "hydra-joblib-launcher", "joblib"),
    "hydra_plugins.hydra_submitit_launcher": (
        "hydra_plugins.hydra_submitit_launcher",
        "hydra-submitit-launcher",
        "submitit",
    ),
    "hydra_plugins.hydra_ray_launcher": ("hydra_plugins.hydra_ray_launcher", "hydra-ray-launcher", "ray"),
}


def register_plugins() -> None:
    """Let Hydra make our sweepers, where this package is: in a checkout as in an installed wheel.

    Hydra makes sweepers of the namespace package ``hydra_plugins`` alone, which a checkout cannot be found by; joblib
    and submitit pickle the registry, so that a class has to be importable by its own name.
    """
    # Hydra's advice about configs named as the plugins' own: ours are complete.
    warnings.filterwarnings("ignore", r"(?s).*is validated against ConfigStore schema")
    for sweeper in (OptunaSweeper, GridSweeper):
        Plugins.instance().register(sweeper)
    _, BasicSweeperConf = compat.basic_sweeper()
    ours = BasicSweeperConf(_target_=f"{GridSweeper.__module__}.{GridSweeper.__qualname__}")
    ConfigStore.instance().store(group="hydra/sweeper", name="basic", node=ours, provider="fish_lightning")
    compat.allow_plugins(_may_be_made)


def _may_be_made(target: str) -> bool:
    """Whether Hydra may make the plugin of that class path; ends the program where its package is missing."""
    for prefix, (module, package, extra) in _NEEDS.items():
        if target.startswith(f"{prefix}.") and not _installed(module):
            end_with(
                UserError(
                    f"{target.rpartition('.')[2]} needs a package that is not installed\n"
                    f"pip install '{package}'  (the extra {extra}: pip install '.[{extra}]' in a checkout)"
                )
            )
    return target.startswith(("hydra_plugins.", "hydra._internal.core_plugins.", "fish_lightning.sweeps."))


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of the namespace package itself
        return False
