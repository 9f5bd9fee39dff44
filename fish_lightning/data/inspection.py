"""Check every image of a data set before training: what ``prepare`` finds and its report shows."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt
from PIL import Image

from fish_lightning.data.catalog import Catalog
from fish_lightning.data.decoding import UnreadableImage, decode, opened
from fish_lightning.data.listing import MASK_SUFFIX, images_below
from fish_lightning.data.near_duplicates.search import label_errors
from fish_lightning.hardware import in_threads

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ImageFacts:
    """Properties of an image file; empty if it is unreadable.

    Attributes:
        height: height in pixels.
        width: width in pixels.
        mode: channels in Pillow's terms (RGB, L, P …).
        format: file format in Pillow's terms (PNG, JPEG …).
        digest: hash of the file's bytes.
        error: why the file is unreadable; None if it is readable.
    """

    height: int = 0
    width: int = 0
    mode: str = ""
    format: str = ""
    digest: str = ""
    error: str | None = None


@dataclass(frozen=True)
class Inspection:
    """What is known about a data set of N images after checking it.

    Attributes:
        catalog: the catalog, with photographs where they are known.
        facts: properties of each of the N files.
        empty_classes: names of class folders without an image.
        misplaced: indices of images in a folder named after another class.
        same_bytes: indices of each set of identical files.
        label_errors: indices of the copies of each photograph that has more than one label.
        masks_without_image: mask files without an image, where masks are laid out as in the fish archive.
        images_without_mask: image files without a mask, in folders that have masks.
    """

    catalog: Catalog
    facts: Sequence[ImageFacts]
    empty_classes: Sequence[str]
    misplaced: Indices
    same_bytes: Sequence[Indices]
    label_errors: Sequence[Indices]
    masks_without_image: Sequence[str]
    images_without_mask: Sequence[str]

    @property
    def unreadable(self) -> Indices:
        """Indices of the unreadable files."""
        return np.flatnonzero([fact.error is not None for fact in self.facts])

    @property
    def wrong_suffixes(self) -> Indices:
        """Indices of the files whose type contradicts their suffix; training reads them all the same."""
        formats = Image.registered_extensions() | {".mpo": "JPEG"}
        expected = [formats.get(PurePosixPath(path).suffix.lower()) for path in self.catalog.paths.tolist()]
        # Phones save MPO, a variant of JPEG, as .jpg.
        found = [fact.format.replace("MPO", "JPEG") for fact in self.facts]
        return np.flatnonzero([bool(a and b and a != b) for a, b in zip(expected, found, strict=True)])

    @property
    def photographs(self) -> list[Indices]:
        """Indices of each photograph with more than one image, in the order of their first paths; [] if unknown."""
        return _indices_of_equal(self.catalog.photograph_numbers.tolist())


def inspect(catalog: Catalog, empty_classes: Sequence[str] = ()) -> Inspection:
    """Decode every image of a catalog and find what is wrong with the data set.

    Args:
        catalog: catalog of N images, with photographs if they are known.
        empty_classes: names of class folders without an image.
    """
    facts = list(in_threads(image_facts, catalog.files, "checking"))
    readable = [fact.digest if fact.error is None else str(i) for i, fact in enumerate(facts)]
    masks, unmasked = _unmatched_masks(catalog)
    return Inspection(
        catalog=catalog,
        facts=facts,
        empty_classes=empty_classes,
        misplaced=_misplaced(catalog),
        same_bytes=_indices_of_equal(readable),
        label_errors=label_errors(catalog.labels, catalog.photograph_numbers),
        masks_without_image=masks,
        images_without_mask=unmasked,
    )


def image_facts(file: Path) -> ImageFacts:
    """Decode one file as training does."""
    try:
        decode(file)
        with opened(file) as image:
            width, height = image.size
            digest = hashlib.blake2b(file.read_bytes(), digest_size=16).hexdigest()
            return ImageFacts(height, width, image.mode, image.format or "", digest)
    except UnreadableImage as error:
        return ImageFacts(error=str(error).removeprefix(f"{file}: "))


def _indices_of_equal(values: Sequence[object]) -> list[Indices]:
    """Return the indices of each value that occurs more than once, in the order of first occurrence."""
    indices: dict[object, list[int]] = {}
    for i, value in enumerate(values):
        indices.setdefault(value, []).append(i)
    return [np.array(same) for same in indices.values() if len(same) > 1]


def _misplaced(catalog: Catalog) -> Indices:
    """Find images in a folder named after another class, such as ``bass/trout/1.png``."""
    names = set(catalog.classes)
    return np.flatnonzero(
        [
            bool((names - {catalog.classes[label]}) & set(PurePosixPath(path).parent.parts))
            for path, label in zip(catalog.paths.tolist(), catalog.labels, strict=True)
        ]
    )


def _unmatched_masks(catalog: Catalog) -> tuple[list[str], list[str]]:
    """Return masks without an image of the same name, and images without a mask in folders that have masks."""
    masks, unmasked = [], []
    images: dict[PurePosixPath, dict[str, str]] = {}
    for path in map(PurePosixPath, catalog.paths.tolist()):
        images.setdefault(path.parent, {})[path.stem] = str(path)
    for folder, by_name in sorted(images.items()):
        beside = catalog.root / folder.with_name(folder.name + MASK_SUFFIX) if folder.name else catalog.root
        if beside == catalog.root or not beside.is_dir():
            continue
        of = {file.stem: file.relative_to(catalog.root).as_posix() for file in images_below(beside)}
        masks += [of[name] for name in sorted(of.keys() - by_name.keys())]
        unmasked += [by_name[name] for name in sorted(by_name.keys() - of.keys())]
    return masks, unmasked
