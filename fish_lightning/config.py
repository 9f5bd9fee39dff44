"""Where the YAML files are: beside the package in a checkout, inside it in an installed wheel."""

from pathlib import Path

from fish_lightning.hardware import register_resolvers

_PACKAGE = Path(__file__).parent

#: Folder of the config groups, as :func:`hydra.main` wants it.
CONF = str(_PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent / "conf")

register_resolvers()
