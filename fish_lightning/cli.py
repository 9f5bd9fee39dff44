"""What all entry points share: the config folder, resolvers and plugins registered with Hydra.

Imported at every start, also for ``--help``: nothing heavier than Hydra belongs here.
"""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from fish_lightning import compat
from fish_lightning.data.sample.recipe import Recipe
from fish_lightning.distributed.cluster import run_name, tasks_per_node
from fish_lightning.errors import end_if_known
from fish_lightning.hardware import cores, default_workers, fused, uses_cuda
from fish_lightning.predicting.folders import predict_folder
from fish_lightning.resume.folders import config_folder, run_folder
from fish_lightning.sweeps.plugins import register_plugins

_PACKAGE = Path(__file__).parent

#: Folder of the config groups, as :func:`hydra.main` takes it: beside the package in a checkout, inside it in a wheel.
CONF = str(_PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent / "conf")

#: Choices of ``data`` that a program does not have.
_NOT_OFFERED = {"train": {"checkpoint", "fish_originals"}, "prepare": {"checkpoint"}}


def choices(program: str, folders: Iterable[str] = (CONF,)) -> dict[str, list[str]]:
    """Return the config groups of a program and the choices in each, sorted by name.

    Args:
        program: program name; for the name of another config, the groups of all programs are returned.
        folders: config folders, including those that a user adds (``--config-dir``).
    """
    found: dict[str, set[str]] = {}
    for folder in folders:
        for file in Path(folder).glob("*/**/*.yaml"):
            found.setdefault(file.parent.relative_to(folder).as_posix(), set()).add(file.stem)
    if (file := Path(CONF, f"{program}.yaml")).is_file():
        own = {str(name) for default in OmegaConf.load(file).defaults if OmegaConf.is_dict(default) for name in default}
        others = {folder.name for folder in Path(CONF).iterdir()} - own
        found = {group: names for group, names in found.items() if group.partition("/")[0] not in others}
        found.get("data", set()).difference_update(_NOT_OFFERED.get(program, ()))
    return {group: sorted(names) for group, names in sorted(found.items())}


def _help(program: str, sources: Any) -> str:
    """Return the choices of a program, a line for each group; ``sources`` are ``hydra.runtime.config_sources``."""
    offered = choices(program, [source.path for source in sources if source.schema == "file"])
    shown = [group for group in offered if group.partition("/")[0] != "hydra"]
    return "\n".join(f"{group}: {', '.join(offered[group])}" for group in shown)


#: OmegaConf resolvers, for ``${workers:…}``, ``${run_folder:…}`` and so on in the YAML.
_RESOLVERS = {
    "choices": _help,
    "config_folder": config_folder,
    "cores": cores,
    "fused": fused,
    "on_a_terminal": sys.stdout.isatty,
    "predict_folder": predict_folder,
    "run_folder": run_folder,
    "run_name": run_name,
    "sample_name": lambda *arguments: Recipe(*arguments).folder,
    "tasks": tasks_per_node,
    "uses_cuda": uses_cuda,
    "workers": default_workers,
}

for _name, _resolver in _RESOLVERS.items():
    OmegaConf.register_new_resolver(_name, _resolver, replace=True)
register_plugins()
compat.share_config_store()
compat.before_hydra_reports(end_if_known)
