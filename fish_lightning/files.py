"""Files that are written whole or not at all, and how their paths are shown."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary sibling to write to; renamed to ``path`` when the block ends well, removed when it does not.

    Args:
        path: the file to make or replace; its folder is made if missing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last: writers choose the format by it.
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def shown(path: str | Path | None) -> str:
    """A path as the user would type it: seen from the working folder where it lies below that."""
    if path is None:
        return "none"
    absolute = Path(path).absolute()
    return str(absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else absolute)
