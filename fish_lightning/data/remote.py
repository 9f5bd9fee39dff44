"""Images in object stores and on the web, by any URL that fsspec opens: ``s3://``, ``gs://``, ``https://``, ``memory://``.

Credentials and endpoints are those that each store's own library finds (``AWS_PROFILE``, ``FSSPEC_S3_ENDPOINT_URL``).
"""

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from fish_lightning.errors import UserError, one_line
from fish_lightning.names import printable

#: A scheme has two letters or more: one letter is a drive of Windows.
_URL = re.compile(r"^([A-Za-z][\w+.-]+(?:::[A-Za-z][\w+.-]+)*):/{1,3}(?=[^/])")


def is_remote(path: str | Path) -> bool:
    """Return whether a path is a URL, also one of whose slashes ``pathlib`` has dropped (``s3:/bucket``)."""
    return _URL.match(str(path)) is not None


def url_of(path: str | Path) -> str:
    """Return the URL that a path is, with both slashes."""
    return _URL.sub(r"\1://", str(path))


def file_system(url: str, key: str) -> tuple[Any, str]:
    """Return the fsspec file system of a URL, and the path in it.

    Raises:
        UserError: fsspec does not know the scheme, or the library for it is not installed.
    """
    from fsspec.core import url_to_fs

    try:
        return url_to_fs(url_of(url))  # type: ignore[no-any-return]
    except (ImportError, ValueError) as error:
        raise UserError(
            f"{key}: {url} cannot be opened ({one_line(error)})\nfor s3: pip install 'fish_lightning[s3]'"
        ) from None


def opened(path: str | Path) -> BinaryIO:
    """Open a remote file for reading; only what is read of it is fetched."""
    system, place = file_system(str(path), "input")
    stream: BinaryIO = system.open(place, "rb")
    return stream


def images_below(url: str, key: str) -> Iterator[str]:
    """Yield the URLs of the images that a URL names: an image, a folder with its sub-folders, or a pattern; sorted.

    Hidden files and files with another suffix than an image's are left out, as they are in a local folder.

    Raises:
        UserError: the store cannot be reached or refuses.
    """
    from fish_lightning.data.folders import IMAGE_SUFFIXES

    system, place = file_system(url, key)
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
        raise UserError(f"{key}: {printable(url)} cannot be listed ({one_line(error)})") from None
    start = len(place.rstrip("/").split("/"))
    for file in sorted(found):
        names = file.split("/")
        if Path(names[-1]).suffix.lower() in IMAGE_SUFFIXES and not any(n.startswith(".") for n in names[start:]):
            yield str(system.unstrip_protocol(file))
