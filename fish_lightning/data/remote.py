"""Images in object stores and on the web, by any URL that fsspec opens: ``s3://``, ``gs://``, ``https://``.

``predict`` reads each image where it is. Training reads images more than once (near-duplicates, decoding, pictures of
the report), so ``data.root=URL`` is copied into the cache, of which a later run fetches only what has changed.

Credentials and endpoints are those that each store's own library finds (``AWS_PROFILE``, ``AWS_ENDPOINT_URL``).
"""

import hashlib
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from tqdm import tqdm

from fish_lightning.errors import UserError, one_line
from fish_lightning.files import locked, shown, write_json
from fish_lightning.names import printable
from fish_lightning.run_log import say

#: Files fetched at a time.
BLOCK = 256
#: Seconds between two writes of the index, which grows with the number of files.
PAUSE = 5.0
INDEX = ".fetched.json"
#: What stores call the version of an object.
_VERSIONS = ("ETag", "etag", "md5Hash", "LastModified", "last_modified", "updated", "mtime", "created")
#: A scheme has two letters or more: one letter is a drive of Windows.
_URL = re.compile(r"^([A-Za-z][\w+.-]+(?:::[A-Za-z][\w+.-]+)*):/{1,3}(?=[^/])")


def is_remote(path: str | Path) -> bool:
    """Return whether a path is a URL, even if ``pathlib`` has dropped one of its slashes (``s3:/bucket``)."""
    return _URL.match(str(path)) is not None


def url_of(path: str | Path) -> str:
    """Return a path that is a URL as a URL with both slashes."""
    return re.sub(r"^([\w+.:-]+):/(?=[^/])", r"\1://", str(path))


def file_system(url: str, key: str) -> tuple[Any, str]:
    """Return the fsspec file system of a URL, and the path in it.

    Raises:
        UserError: fsspec does not know the scheme, or the library for it is not installed.
    """
    from fsspec.core import url_to_fs

    try:
        return url_to_fs(url_of(url))  # type: ignore[no-any-return]
    except UserError:
        raise
    except Exception as error:  # some connect here, and each has errors of its own
        advice = "\nfor s3: pip install 'fish_lightning[s3]'" if isinstance(error, ImportError | ValueError) else ""
        raise UserError(f"{key}: {printable(url)} cannot be opened ({one_line(error)}){advice}") from None


def opened(path: str | Path) -> BinaryIO:
    """Open a remote file for reading; only what is read of it is fetched."""
    system, place = file_system(str(path), "input")
    return system.open(place, "rb")  # type: ignore[no-any-return]


def images_below(url: str) -> Iterator[str]:
    """Yield the URLs of the images that a URL names: an image, a folder with its sub-folders, or a pattern; sorted.

    Hidden files and files with another suffix than an image's are left out, as they are in a local folder.

    Raises:
        UserError: the store cannot be reached or refuses.
    """
    system, place = file_system(url, "input")
    try:
        if any(letter in place for letter in "*?["):
            found = system.glob(place)
        else:
            with suppress(FileNotFoundError):  # a prefix is no object of its own
                if system.isfile(place):
                    yield url_of(url)
                    return
            found = system.find(place)
    except Exception as error:  # each library has its own: botocore's are no OSError
        raise _unlisted("input", url, error) from None
    for file in sorted(found):
        if _is_image(file, place):
            yield str(system.unstrip_protocol(file))


def copy_of(url: str, cache: Path | None) -> Path:
    """Return the folder below ``cache`` for the copy of a remote folder.

    Raises:
        UserError: there is no cache.
    """
    if cache is None:
        raise UserError(f"data.root={url} is copied to a folder first: pass one with data.cache_dir=DIR")
    name = re.sub(r"[^\w.-]+", "-", url_of(url).rstrip("/"))[-80:]
    return cache / f"{name}-{hashlib.sha256(url_of(url).rstrip('/').encode()).hexdigest()[:12]}"


def fetch(url: str, folder: Path) -> None:
    """Make a folder a copy of the images of a remote one: fetch new and changed ones, remove those that are gone.

    Files are complete or absent; an interrupted fetch is resumed. If several processes call this, one of them fetches.

    Args:
        url: URL of the remote folder.
        folder: local folder, from :func:`copy_of`.

    Raises:
        UserError: the store cannot be reached or refuses, or has no image there.
    """
    system, place = file_system(url, "data.root")
    with locked(folder / ".lock", f"waiting for another program that is fetching {printable(url)}"):
        try:
            found: dict[str, Any] = system.find(place, detail=True)
        except Exception as error:
            raise _unlisted("data.root", url, error) from None
        start = len(place.rstrip("/")) + 1
        there = {path[start:]: _version(info) for path, info in found.items() if _is_image(path, place)}
        if not there:
            raise UserError(f"data.root: {url} has no image\npass a folder of class folders: data.root=URL")
        fetched = _index(folder)
        for gone in fetched.keys() - there.keys():
            (folder / gone).unlink(missing_ok=True)
        fetched = {path: version for path, version in fetched.items() if there.get(path) == version}
        new = sorted(path for path in there if path not in fetched or not (folder / path).is_file())
        if new:
            say(f"fetching {len(new):,} of {len(there):,} images of {printable(url)} to {shown(folder)}")
        written = time.monotonic()
        try:
            with tqdm(total=len(new), desc="fetching", unit="image", disable=None) as bar:
                for begin in range(0, len(new), BLOCK):
                    block = new[begin : begin + BLOCK]
                    _get(system, place, block, folder)
                    fetched |= {path: there[path] for path in block}
                    if time.monotonic() - written > PAUSE:
                        write_json(folder / INDEX, fetched)
                        written = time.monotonic()
                    bar.update(len(block))
        finally:
            write_json(folder / INDEX, fetched)


def _get(system: Any, place: str, paths: list[str], folder: Path) -> None:
    """Fetch files, each whole or not at all."""
    temporary = [(folder / path).with_name(f".{os.getpid()}.{Path(path).name}") for path in paths]
    try:
        for file in temporary:
            file.parent.mkdir(parents=True, exist_ok=True)
        system.get([f"{place.rstrip('/')}/{path}" for path in paths], list(map(str, temporary)))
        for file, path in zip(temporary, paths, strict=True):
            file.replace(folder / path)
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None and error.filename:
            raise  # of this machine: a full disk, a closed folder
        raise UserError(f"data.root: {printable(paths[0])} or the next cannot be fetched ({one_line(error)})") from None
    finally:
        for file in temporary:
            file.unlink(missing_ok=True)


def _index(folder: Path) -> dict[str, str]:
    """Return the version of each file that was fetched; nothing where that is not known."""
    try:
        return dict(json.loads((folder / INDEX).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def _version(info: Mapping[str, Any]) -> str:
    return "|".join(str(info[name]) for name in ("size", *_VERSIONS) if name in info)


def _is_image(file: str, place: str) -> bool:
    """Return whether a file below ``place`` has the suffix of an image, is not hidden and stays below it."""
    from fish_lightning.data.listing import IMAGE_SUFFIXES

    names = file.split("/")
    below = names[len(place.rstrip("/").split("/")) :] or names[-1:]
    return Path(names[-1]).suffix.lower() in IMAGE_SUFFIXES and not any(name[:1] in (".", "") for name in below)


def _unlisted(key: str, url: str, error: Exception) -> UserError:
    return UserError(f"{key}: {printable(url)} cannot be listed ({type(error).__name__}: {one_line(error)})")
