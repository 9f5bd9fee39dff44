"""Our sweeper made known to Hydra, and a word about launchers whose package is not installed.

Imported at every start: Hydra alone.
"""

from importlib.util import find_spec

from hydra.core.plugins import Plugins

from fish_lightning.errors import UserError, end_with
from fish_lightning.sweeps.optuna_sweeper import OptunaSweeper

#: Package that a plugin needs: the choice that names it and our extra that installs it.
_EXTRAS = {
    "optuna": (f"{OptunaSweeper.__module__}.", "hydra/sweeper=optuna", "optuna"),
    "hydra_plugins.hydra_joblib_launcher": ("hydra_plugins.hydra_joblib_launcher.", "hydra/launcher=joblib", "joblib"),
    "hydra_plugins.hydra_submitit_launcher": (
        "hydra_plugins.hydra_submitit_launcher.",
        "hydra/launcher=submitit_local and submitit_slurm",
        "submitit",
    ),
}


def register_plugins() -> None:
    """Let Hydra make :class:`OptunaSweeper`, where this package is: in a checkout as in an installed wheel.

    Hydra makes sweepers of the namespace package ``hydra_plugins`` alone, which a checkout cannot be found by; joblib
    and submitit pickle the registry, so that a class has to be importable by its own name.
    """
    Plugins.instance().register(OptunaSweeper)
    Plugins.is_in_toplevel_plugins_module = staticmethod(_may_be_made)  # type: ignore[method-assign]


def _may_be_made(target: str) -> bool:
    """Whether Hydra may make the plugin of that class path; ends the program where its package is missing."""
    for package, (prefix, choice, extra) in _EXTRAS.items():
        if target.startswith(prefix) and not _installed(package):
            end_with(UserError(f"{choice}: not installed\npip install 'fish_lightning[{extra}]'"))
    return target.startswith(("hydra_plugins.", "hydra._internal.core_plugins.", f"{OptunaSweeper.__module__}."))


def _installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # of the namespace package itself
        return False
