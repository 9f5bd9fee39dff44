"""The one place that walks folders: images are separated from masks, hidden files and this program's own output.

A link to a folder is read like the folder, at whatever depth. Within one listing each folder is read once, so links may
form loops.
"""

import fnmatch
import glob
import os
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from operator import attrgetter
from pathlib import Path

import numpy as np

from fish_lightning.data.catalog import Catalog
from fish_lightning.errors import UserError
from fish_lightning.names import listed
from fish_lightning.run_log import say

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})
MASK_SUFFIX = " GT"
#: What marks a folder that a run, or a sweep of runs, was written to.
RUN_FILES = (".hydra", "multirun.yaml")
#: Folders below ``logs``.
PROGRAMS = ("train", "evaluate", "predict", "prepare", "compare", "ensemble", "export", "serve", "tune")


RUN = "output of this program"
LOOP = "a link to a folder that is read anyway"
SPECIAL = "special files (pipes, sockets, devices)"
#: What a listing skipped on purpose: the reason by folder or file.
Skipped = dict[Path, str]


def say_skipped(skipped: Skipped) -> None:
    """Print what a listing skipped, a line for each reason."""
    for why in dict.fromkeys(skipped.values()):
        paths = [str(path) for path, reason in skipped.items() if reason == why]
        say(f"note: skipped {why}: {listed(paths, most=3)}")


def require_folder(root: Path) -> None:
    """Raise a :class:`UserError` unless ``root`` is a folder that can be read."""
    with _readable(root):  # a folder above it may be closed to us, or its name too long
        is_folder, exists = root.is_dir(), root.exists()
    if not is_folder:
        fault = "is a file, not a folder" if exists else "does not exist"
        raise UserError(f"data.root: {root} {fault} (working directory: {_here()})\npass a folder: data.root=DIR")


def _here() -> str:
    try:
        return os.getcwd()  # noqa: PTH109 - as text for messages
    except OSError:
        return "deleted"


@contextmanager
def _readable(folder: Path) -> Iterator[None]:
    """Name a folder that the system refuses to read."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{folder} cannot be read ({error.strerror or error}), so its images would be missing\n"
            "grant read permission, or move it elsewhere"
        ) from None


def _scan(folder: Path) -> Iterator["os.DirEntry[str]"]:
    """Yield what a folder contains, in any order; nothing if it does not exist."""
    with _readable(folder), suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        yield from entries


def _is(entry: "os.DirEntry[str]", folder: bool) -> bool:
    """Return whether an entry, or what it links to, is a folder (or a regular file)."""
    try:
        return entry.is_dir() if folder else entry.is_file()
    except OSError:  # a link to itself, or to a place that is closed to us
        return False


def _identity(folder: Path) -> tuple[int, int]:
    with _readable(folder):
        status = folder.stat()
    return status.st_dev, status.st_ino


def _with_parents(folder: Path) -> set[tuple[int, int]]:
    """Return the identities of a folder and of all above it, also above a link to it: a link to them is a loop."""
    with _readable(folder):  # fails in a deleted working directory
        real, above = folder.resolve(), folder.absolute().parent.resolve()
    return {_identity(place) for place in (real, *real.parents, above, *above.parents)}


def _is_run(folder: Path) -> bool:
    """Return whether a run, or a sweep of runs, was written to this folder."""
    return any(os.path.exists(folder / name) for name in RUN_FILES)  # noqa: PTH110 - False for what cannot be looked at


def _is_output(folder: Path) -> bool:
    """Return whether a folder belongs to a run, or contains runs like ``logs`` (``train/runs/<run>``)."""
    if _is_run(folder):
        return True
    programs = (folder / program / runs for program in PROGRAMS for runs in ("runs", "multiruns"))
    return any(_is_run(Path(run.path)) for runs in programs for run in _scan(runs))


def subfolders(folder: Path, skipped: Skipped) -> list[Path]:
    """Return the sub-folders, sorted, without hidden ones, folders of masks, and output of this program.

    Args:
        folder: folder to list; links in it are followed, except to itself and to folders above it.
        skipped: dict to which skipped paths are added with the reason, apart from hidden folders and masks.

    Raises:
        UserError: the folder cannot be read.
    """
    entries = [entry for entry in _scan(folder) if not entry.name.startswith(".") and _is(entry, folder=True)]
    names = {entry.name for entry in entries}
    above = _with_parents(folder) if any(entry.is_symlink() for entry in entries) else set()
    found = []
    for entry in sorted(entries, key=attrgetter("name")):
        place = folder / entry.name
        if entry.is_symlink() and _identity(place) in above:
            skipped[place] = LOOP
        elif _is_output(place):
            skipped[place] = RUN
        elif not _holds_masks(entry.name, names):
            found.append(place)
    return found


def _holds_masks(name: str, beside: Collection[str]) -> bool:
    """Return whether ``<name> GT`` is beside the folder of images ``<name>``, as in the fish archive."""
    return name.endswith(MASK_SUFFIX) and name.removesuffix(MASK_SUFFIX) in beside


def images_below(
    folder: Path, skipped: Skipped | None = None, suffixes: Collection[str] | None = IMAGE_SUFFIXES
) -> Iterator[Path]:
    """Yield the image files below ``folder``, by suffix in either case, without hidden files and masks.

    Those in linked folders come last: a folder is read under its own name.

    Args:
        folder: folder to search.
        skipped: dict to which skipped paths are added, apart from hidden files, masks, and files with another suffix.
        suffixes: suffixes of the files in lower case; None: any.

    Raises:
        UserError: a folder cannot be read.
    """
    if not folder.is_dir():
        return
    skipped = {} if skipped is None else skipped
    seen = _with_parents(folder) - {_identity(folder)}
    pending = deque([folder])  # from the right; links wait on the left until the folders are read
    while pending:
        place = pending.pop()
        identity = _identity(place)
        if identity in seen or (place != folder and _is_run(place)):
            skipped[place] = LOOP if identity in seen else RUN
            continue
        seen.add(identity)
        # Of a million files in one folder the names alone are kept.
        files: list[str] = []
        special: list[str] = []
        folders: list[os.DirEntry[str]] = []
        for entry in _scan(place):
            if entry.name.startswith("."):
                continue
            if _is(entry, folder=True):
                folders.append(entry)
            elif suffixes is None or os.path.splitext(entry.name)[1].lower() in suffixes:  # noqa: PTH122 - as above
                # A link to nothing is kept: the decoder reports it.
                regular = _is(entry, folder=False) or not os.path.exists(entry.path)  # noqa: PTH110 - it is text
                (files if regular else special).append(entry.name)
        skipped |= {place / name: SPECIAL for name in special}
        yield from (place / name for name in sorted(files))
        names = {entry.name for entry in folders}
        folders = [entry for entry in folders if not _holds_masks(entry.name, names)]
        folders.sort(key=attrgetter("name"))
        pending.extendleft(Path(entry.path) for entry in folders if entry.is_symlink())
        pending.extend(Path(entry.path) for entry in reversed(folders) if not entry.is_symlink())


def input_catalog(pattern: str, classes: Sequence[str], key: str = "input") -> Catalog:
    """Return the files to predict as a catalog without labels.

    Args:
        pattern: pattern that :func:`input_files` takes.
        classes: the model's class names.
        key: the setting that gives ``pattern``, for errors.

    Raises:
        UserError: it matches no image.
    """
    paths = np.array(list(input_files(pattern, key)), dtype=np.str_)
    blank = np.full(len(paths), "", dtype=np.str_)
    return Catalog(Path(), paths, np.zeros(len(paths), np.int64), blank, blank, tuple(classes))


def input_files(pattern: str, key: str = "input") -> Iterator[str]:
    """Yield the files to predict; those of a folder as they are found.

    Args:
        pattern: an image file, a folder (searched with its sub-folders), or a pattern with ``*``, ``?`` or ``**``.
        key: the setting that gives ``pattern``, for errors.

    Yields:
        Paths relative to the working directory, or absolute, as ``pattern`` is.

    Raises:
        UserError: it matches no image.
    """
    path, count = os.path.expanduser(pattern), 0  # noqa: PTH111 - like the next lines, it never raises
    skipped: Skipped = {}
    if os.path.isdir(path):  # noqa: PTH112
        files: Iterable[str] = (str(file) for file in images_below(Path(path), skipped))
    elif os.path.isfile(path):  # noqa: PTH113
        files = [str(Path(path))]
    else:
        # Through links, several patterns lead to one file: the shortest path stays.
        found = sorted(_matching(path, skipped), key=lambda file: (file.count(os.sep), file), reverse=True)
        files = sorted({same_file(Path(file)): file for file in found}.values())
    for count, file in enumerate(files, 1):  # noqa: B007 - counted
        yield file
    say_skipped(skipped)
    if not count:
        fault = "contains no image" if os.path.exists(path) else "matches no file"  # noqa: PTH110
        raise UserError(
            f"{key}: {pattern} {fault} (working directory: {_here()})\npass an image, a folder or 'quoted pattern*'"
        )


def same_file(file: Path) -> str:
    """Return one path for all paths of a file through linked folders; two links to the file itself stay two files."""
    return os.path.join(os.path.realpath(file.parent), file.name)  # noqa: PTH118 - for each of a million files


def _matching(pattern: str, skipped: Skipped) -> Iterator[str]:
    """Yield the files that match a pattern; ``**`` is any folder that :func:`images_below` reads."""
    parts = Path(pattern).parts
    at = parts.index("**") if "**" in parts else len(parts)
    for name in glob.glob(str(Path(*parts[:at]))):
        if at == len(parts):
            if os.path.isfile(name):  # noqa: PTH113
                yield name
            continue
        for file in images_below(Path(name), skipped, suffixes=None):
            if _fits(file.relative_to(name).parts, parts[at:]):
                yield str(file)


def _fits(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_fits(parts[start:], pattern[1:]) for start in range(len(parts) + 1))
    return bool(parts) and fnmatch.fnmatchcase(parts[0], pattern[0]) and _fits(parts[1:], pattern[1:])
