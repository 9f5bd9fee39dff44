"""What a job of a sweep is called in TensorBoard, which names runs by folders: ``3/optimizer.lr=0.01,seed=2``.

The job's own folder keeps its number, by which a resumed sweep finds it; the event file is in a folder within it.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf

from fish_lightning.resume.folders import key_of, loaded, overrides_of

#: Characters of a name at most; where it would be longer, ``optimizer.lr`` is ``lr``.
LONGEST = 100


def job_name(folder: Path) -> str:
    """Return the name of the folder of a run's event file within the run folder.

    Once it exists the name stays, even where a sweep is resumed with more settings.

    Args:
        folder: run folder, where Hydra has written its overrides; the sweep's folder above it has ``multirun.yaml``.

    Returns:
        The job's values of the settings that the sweep varies; empty for a single run.
    """
    for depth in ("", "*/"):
        for events in sorted(folder.glob(f"{depth}events.out.tfevents*")):
            return events.parent.name if depth else ""
    varied = set(_varied(loaded(folder.parent / "multirun.yaml")))
    words = [word for word in overrides_of(folder) if key_of(word) in varied]
    own = [(key_of(word), _short(word.partition("=")[2])) for word in words]
    name = ",".join(f"{key}={value}" for key, value in own)
    if len(name) > LONGEST:
        name = ",".join(f"{key.rpartition('.')[2]}={value}" for key, value in own)
    return re.sub(r"[^\w.=,+-]+", "_", name, flags=re.ASCII)[:LONGEST]


def _varied(sweep: Any) -> Iterator[str]:
    """Yield the keys that a sweep varies, on its command line or in its ``params``."""
    params = OmegaConf.select(sweep, "hydra.sweeper.params") or {}
    words = OmegaConf.select(sweep, "hydra.overrides.task") or []
    for word in [*(f"{key}={value}" for key, value in params.items()), *words]:
        try:
            override = OverridesParser.create().parse_override(str(word))
        except HydraException:
            continue
        if override.is_sweep_override():
            yield key_of(override.get_key_element())


def _short(value: str) -> str:
    """Return a value with numbers shortened to four digits, and a path shortened to its last part."""
    try:
        return value if len(value) < 8 else f"{float(value):.4g}"
    except ValueError:
        return value.rstrip("/").rpartition("/")[2]
