"""Register our sweepers with Hydra, and name the package that a missing launcher requires.

Imported at every start: nothing heavier than Hydra belongs here.
"""

from contextlib import suppress
from importlib.util import find_spec

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins

from fish_lightning import compat
from fish_lightning.errors import UserError, end_with
from fish_lightning.sweeps.grid_sweeper import GridSweeper
from fish_lightning.sweeps.optuna_sweeper import OptunaSweeper

#: By the prefix of a plugin's class path: the module it requires, and the package and the extra that install it.
_NEEDS = {
    OptunaSweeper.__module__: ("optuna", "optuna>=4,<6", "optuna"),
    **{
        (module := f"hydra_plugins.hydra_{name}_launcher"): (module, f"hydra-{name}-launcher", name)
        for name in ("joblib", "submitit", "ray")
    },
}


def register_plugins() -> None:
    """Let Hydra instantiate our sweepers, in a checkout and in an installed wheel."""
    compat.quiet_hydra()
    for sweeper in (OptunaSweeper, GridSweeper):
        Plugins.instance().register(sweeper)
    _, BasicSweeperConf = compat.basic_sweeper()
    ours = BasicSweeperConf(_target_=f"{GridSweeper.__module__}.{GridSweeper.__qualname__}")
    ConfigStore.instance().store(group="hydra/sweeper", name="basic", node=ours, provider="fish_lightning")
    compat.allow_plugins(_is_allowed)


def _is_allowed(target: str) -> bool:
    """Return whether Hydra may instantiate that class as a plugin; end the program if its package is missing."""
    for prefix, (module, package, extra) in _NEEDS.items():
        if target.startswith(f"{prefix}.") and not _installed(module):
            end_with(
                UserError(
                    f"{target.rpartition('.')[2]} requires a package that is not installed\n"
                    f"pip install '{package}'  (in a checkout: pip install '.[{extra}]')"
                )
            )
    return target.startswith((*compat.PLUGINS, "fish_lightning.sweeps."))


def _installed(module: str) -> bool:
    with suppress(ModuleNotFoundError):  # the namespace package is missing
        return find_spec(module) is not None
    return False
