"""The files to predict, one or a million: listed as they are found, kept as one block of bytes, decoded in batches.

A catalog would take several times the memory, and lists of text are copied page by page into each loader worker.
"""

import csv
import hashlib
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import albumentations as A
import numpy as np
from torch.utils.data import Dataset, default_collate

from fish_lightning.data import remote
from fish_lightning.data.dataset import UNREADABLE, KeyedRandomness
from fish_lightning.data.decoding import UnreadableImage, decode
from fish_lightning.data.keys import keyed_seed
from fish_lightning.data.listing import input_files
from fish_lightning.errors import UserError, first_line
from fish_lightning.names import ENCODE_ERRORS

#: Files that list others, by their suffix.
LISTS = (".txt", ".csv")


class InputFiles:
    """Paths and URLs, in order; a million of 60 characters take 68 MB.

    Args:
        paths: paths and URLs, iterated over once.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        text, ends = bytearray(), array("q")
        for path in paths:
            text += os.fsencode(path)
            ends.append(len(text))
        self._text, self._ends = np.array(memoryview(text), np.uint8), np.array(ends, np.int64)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        index = range(len(self))[index]
        start = int(self._ends[index - 1]) if index else 0
        return os.fsdecode(self._text[start : int(self._ends[index])].tobytes())

    def digest(self) -> str:
        """Return a hash of all paths and their order."""
        return hashlib.sha256(self._ends.tobytes() + self._text.tobytes()).hexdigest()


def read_inputs(text: str) -> InputFiles:
    """List the files that ``input`` names, without looking at each.

    Args:
        text: an image, a folder (searched with its sub-folders), a pattern with ``*``, ``?`` or ``**``; any of these as
            an fsspec URL (``s3://bucket/folder``); or a list of images: a text file, one path or URL a line, or a CSV
            table with the column ``path``. Paths in a list are relative to its folder.

    Raises:
        UserError: it names no image, or a list cannot be read.
    """
    if remote.is_remote(text):
        files = InputFiles(remote.images_below(text))
    elif text.lower().endswith(LISTS) and Path(text).expanduser().is_file():
        files = InputFiles(_listed(Path(text).expanduser()))
    else:
        return InputFiles(input_files(text))
    if not files:
        raise UserError(f"input: {text} names no image\npass an image, a folder, a 'quoted pattern*' or a list of them")
    return files


def _listed(file: Path) -> Iterator[str]:
    """Yield the paths listed in a text file, or in a CSV table with the column ``path``."""
    try:
        with file.open(newline="", encoding="utf-8-sig", errors=ENCODE_ERRORS) as stream:
            paths = (line.rstrip("\r\n") for line in stream)
            if file.suffix.lower() == ".csv":
                table = csv.DictReader(stream, restval="")
                if "path" not in (table.fieldnames or ()):
                    raise UserError(f"input: {file} has no column 'path'")
                paths = (line["path"] for line in table)
            for path in paths:
                if "\0" in path:
                    raise UserError(f"input: {file} is not a list of paths: it contains bytes that are not text")
                if path:
                    yield path if remote.is_remote(path) else str(file.parent / path)
    except (OSError, csv.Error) as error:
        raise UserError(f"input: {file} cannot be read ({first_line(error)})") from None


class InputImages(Dataset[list[dict[str, Any]]]):
    """The images of a run of ``predict``; an item is a batch.

    Args:
        files: the N image files.
        transform: albumentations pipeline ending in ``ToTensorV2``.
    """

    def __init__(self, files: InputFiles, transform: A.Compose) -> None:
        self.files, self.transform = files, transform
        self.randomness = KeyedRandomness()

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Return a batch in groups of images of one size: exported models resize images themselves.

        Args:
            indices: indices of the files, 0 to N - 1.

        Returns:
            For each size: ``image`` (n, 3, H, W) uint8, ``label`` (n,) 0 or ``UNREADABLE``, ``index`` (n,), and
            ``error``, a list of n messages, empty for images that could be read.
        """
        by_size: dict[Any, list[dict[str, Any]]] = {}
        for index in indices:
            image = self._image(index)
            by_size.setdefault(image["image"].shape, []).append(image)
        return [default_collate(images) for images in by_size.values()]

    def _image(self, index: int) -> dict[str, Any]:
        label, error = 0, ""
        try:
            pixels = decode(self.files[index])
        except UnreadableImage as unreadable:
            pixels, label, error = np.zeros((32, 32, 3), np.uint8), UNREADABLE, str(unreadable)
        self.randomness.key(self.transform, keyed_seed(0, 0, index))
        return {"image": self.transform(image=pixels)["image"], "label": label, "index": index, "error": error}
