"""Find near-duplicates in a data set, so that a split can keep all copies of one photograph on one side.

A copy may be re-encoded, resized (with another aspect ratio too), flipped, rotated by any angle with black corners,
cropped accordingly, or slightly brighter.
"""

import hashlib
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from fish_lightning.data.catalog import Catalog, named_photographs
from fish_lightning.data.near_duplicates.grouping import group_copies
from fish_lightning.data.near_duplicates.similarity import Features
from fish_lightning.errors import UserError
from fish_lightning.files import atomic_write, locked, state_of
from fish_lightning.hardware import in_threads, threads
from fish_lightning.names import printable
from fish_lightning.run_log import say

Ints = npt.NDArray[np.int64]

#: Part of the cache key: increment it with every change in this package that can change a result.
VERSION = 3


def with_photographs(catalog: Catalog, pattern: str | None, find_copies: bool, cache: str | Path | None) -> Catalog:
    """Return the catalog with the photograph of each image: from a pattern, from the source, or from a search.

    Prints the photographs whose copies have different labels.

    Args:
        catalog: catalog of N images.
        pattern: regular expression, see :func:`fish_lightning.data.catalog.named_photographs`; None: no pattern.
        find_copies: whether to search for near-duplicates where neither pattern nor source gives the photographs.
        cache: folder for the result of the search; None: no cache.

    Raises:
        UserError: the cache cannot be written.
    """
    if pattern is not None:
        return catalog.with_photographs(named_photographs(catalog, pattern))
    if not catalog.photographs_known:
        if not find_copies:
            return catalog
        try:
            catalog = catalog.with_photographs(search(catalog, {}, cache, [catalog.root])[0])
        except OSError as error:
            raise UserError(
                f"data.cache_dir: the near-duplicates found cannot be saved in {cache} ({error.strerror or error})\n"
                "free some space, or choose another folder: data.cache_dir=DIR"
            ) from None
    for indices in label_errors(catalog.labels, catalog.photograph_numbers)[:5]:
        paths = ", ".join(map(printable, catalog.paths[indices[:3]].tolist()))
        say(f"note: copies of one photograph under more than one label: {paths}")
    return catalog


def search(
    catalog: Catalog, others: Mapping[str, Path], cache: str | Path | None, folders: Sequence[Path]
) -> tuple[npt.NDArray[np.str_], npt.NDArray[np.bool_]]:
    """Search for near-duplicates among the images of a catalog, and between them and other images.

    Args:
        catalog: catalog of N images.
        others: other image files by name.
        cache: folder for the result; None: the result is not cached.
        folders: folders of the images, which distinguish this search from others in the cache.

    Returns:
        (N,) the photograph of each image, named by the alphabetically first path or name of its copies; and an (N,)
        mask of the images that are copies of one of the others.

    Raises:
        OSError: see :func:`find_photographs`.
    """
    where = "\0".join(str(folder.resolve()) for folder in folders)
    name = hashlib.sha256(where.encode(errors="surrogateescape")).hexdigest()[:16]
    stored = None if cache is None else Path(cache) / f"photographs-{name}.npz"
    groups = find_photographs([*catalog.files, *others.values()], stored)
    images = slice(len(catalog))
    names = photograph_names([*catalog.paths.tolist(), *others], groups)
    return names[images], np.isin(groups[images], groups[len(catalog) :])


def find_photographs(files: Sequence[Path], cache: Path | None) -> Ints:
    """Return the number of the photograph that each image is a copy of.

    The groups depend neither on the number of cores nor on the order of ``files``. An unreadable file is a photograph
    of its own; training reports it.

    Args:
        files: N image files.
        cache: file for the result, valid while paths, sizes and modification times stay the same; None: no cache.

    Returns:
        (N,) numbers from 0, in order of first appearance.

    Raises:
        OSError: no space for the features (100 KB per image, in the cache's folder or the system's temporary one).
    """
    order = sorted(range(len(files)), key=lambda i: files[i].absolute())
    ordered = [files[i] for i in order]
    key = _cache_key(ordered)
    found = _read_cache(cache, key)
    if found is None:
        waiting = "waiting for another program that is searching for near-duplicates"
        # Of the processes of a run, and of runs started together, one searches.
        with nullcontext() if cache is None else locked(cache.with_suffix(".lock"), waiting):
            found = _read_cache(cache, key)
            if found is None:
                features = _extract_features(ordered, cache)
                with threads() as pool:
                    found = group_copies(features, pool)
                if cache is not None:
                    with atomic_write(cache) as temporary, temporary.open("wb") as stream:
                        np.savez_compressed(stream, key=np.array(key), groups=found)
    groups = np.empty(len(files), dtype=np.int64)
    groups[order] = found
    numbers: dict[int, int] = {}
    return np.array([numbers.setdefault(group, len(numbers)) for group in groups.tolist()], dtype=np.int64)


def photograph_names(paths: Sequence[str], groups: Ints) -> npt.NDArray[np.str_]:
    """Name each photograph by the alphabetically first of its paths.

    Args:
        paths: N paths.
        groups: (N,) photograph numbers from :func:`find_photographs`.

    Returns:
        (N,) photograph names.
    """
    first: dict[int, str] = {}
    for path, group in zip(paths, groups.tolist(), strict=True):
        first[group] = min(path, first.get(group, path))
    return np.array([first[group] for group in groups.tolist()], dtype=np.str_)


def label_errors(labels: Ints, groups: Ints) -> list[Ints]:
    """Find photographs whose copies have different labels: at least one of the labels must be wrong.

    Args:
        labels: (N,) class indices.
        groups: (N,) photograph numbers from :func:`find_photographs`.

    Returns:
        For each such photograph the indices of all its copies, ascending.
    """
    pairs = np.unique(np.stack([groups, labels], axis=1), axis=0)
    numbers, classes = np.unique(pairs[:, 0], return_counts=True)
    return [np.flatnonzero(groups == number) for number in numbers[classes > 1]]


def _extract_features(files: Sequence[Path], cache: Path | None) -> Features:
    if cache is not None:
        cache.parent.mkdir(parents=True, exist_ok=True)
    once = " (once; the result is cached)" if cache is not None else ""
    print(f"searching for near-duplicates among {len(files):,} images{once}", flush=True)
    features = Features(len(files), cache.parent if cache is not None else None)
    for _ in in_threads(lambda i: features.extract(i, files[i]), range(len(files)), "extracting features"):
        pass
    return features


def _cache_key(files: Sequence[Path]) -> str:
    """Hash paths, sizes and modification times, and the versions of the method."""
    state = hashlib.sha256(f"{VERSION} {cv2.__version__}".encode())
    for file in files:
        state.update(f"{state_of(str(file.absolute()), str(file))}\0".encode(errors="surrogateescape"))
    return state.hexdigest()


def _read_cache(cache: Path | None, key: str) -> Ints | None:
    """Return the cached groups of exactly these files; None if there are none or the cache is corrupt."""
    if cache is None:
        return None
    try:
        with np.load(cache) as stored:
            return np.asarray(stored["groups"], dtype=np.int64) if str(stored["key"]) == key else None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None
