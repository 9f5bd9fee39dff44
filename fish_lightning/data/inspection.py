"""Look at every image of a data set before it is trained on: what ``prepare`` finds, and its report shows."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt
from PIL import Image
from tqdm import tqdm

from fish_lightning.data.catalog import Catalog
from fish_lightning.data.decoding import UnreadableImage, decode
from fish_lightning.data.folders import MASK_SUFFIX, images_below
from fish_lightning.data.near_duplicates.search import label_errors, photograph_numbers
from fish_lightning.hardware import cores

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ImageFacts:
    """What one file is.

    Attributes:
        height: pixels; 0 where it cannot be read.
        width: pixels.
        mode: Pillow's word for its channels (RGB, L, P …).
        kind: file format (PNG, JPEG …).
        digest: of the file's bytes.
        error: why it cannot be read; None if it can.
    """

    height: int = 0
    width: int = 0
    mode: str = ""
    kind: str = ""
    digest: str = ""
    error: str | None = None


@dataclass(frozen=True)
class Inspection:
    """What was found out about a data set of N images.

    Attributes:
        catalog: its table, with the photographs where they are known.
        facts: N.
        empty_classes: names of class folders without an image.
        misplaced: rows of images that lie in a folder named as another class.
        same_bytes: rows of each set of equal files.
        label_errors: rows of each photograph whose copies carry more than one label.
        masks_without_image: files, where masks stand beside the images as in the fish archive.
        images_without_mask: files, in classes that have masks.
    """

    catalog: Catalog
    facts: Sequence[ImageFacts]
    empty_classes: Sequence[str]
    misplaced: Rows
    same_bytes: Sequence[Rows]
    label_errors: Sequence[Rows]
    masks_without_image: Sequence[str]
    images_without_mask: Sequence[str]

    @property
    def unreadable(self) -> Rows:
        """Row numbers of the files that cannot be read."""
        return np.flatnonzero([fact.error is not None for fact in self.facts])

    @property
    def photographs(self) -> list[Rows]:
        """Rows of each photograph with more than one image, in the order of their first paths; [] if not known."""
        if not self.catalog.photographs_known:
            return []
        return _rows_in_common(photograph_numbers(self.catalog).tolist())


def inspect(catalog: Catalog, empty_classes: Sequence[str] = ()) -> Inspection:
    """Read every image of a catalog whole, and see what is wrong with the set.

    Args:
        catalog: N images, with their photographs if they are known.
        empty_classes: what the source found without an image.
    """
    files = [catalog.root / path for path in catalog.paths.tolist()]
    with ThreadPoolExecutor(cores()) as pool:  # threads: Pillow releases the interpreter's lock while it decodes
        facts = list(tqdm(pool.map(look_at, files), total=len(files), desc="checking", unit="image", disable=None))
    readable = [fact.digest if fact.error is None else str(row) for row, fact in enumerate(facts)]
    known = catalog.photographs_known
    masks, unmasked = _unmatched_masks(catalog)
    return Inspection(
        catalog=catalog,
        facts=facts,
        empty_classes=empty_classes,
        misplaced=_misplaced(catalog),
        same_bytes=_rows_in_common(readable),
        label_errors=label_errors(catalog.labels, photograph_numbers(catalog)) if known else [],
        masks_without_image=masks,
        images_without_mask=unmasked,
    )


def look_at(file: Path) -> ImageFacts:
    """Decode one file as a training would."""
    try:
        decode(file)
        with Image.open(file) as image:
            width, height = image.size
            mode, kind = image.mode, image.format or ""
        return ImageFacts(height, width, mode, kind, hashlib.blake2b(file.read_bytes(), digest_size=16).hexdigest())
    except UnreadableImage as error:
        return ImageFacts(error=str(error).removeprefix(f"{file}: "))


def _rows_in_common(values: Sequence[object]) -> list[Rows]:
    """Row numbers of each value that occurs more than once, in the order of first rows."""
    rows: dict[object, list[int]] = {}
    for row, value in enumerate(values):
        rows.setdefault(value, []).append(row)
    return [np.array(same) for same in rows.values() if len(same) > 1]


def _misplaced(catalog: Catalog) -> Rows:
    """Images below a folder that another class is named after: ``bass/trout/1.png``, or ``trout/1.png`` in a table."""
    names = set(catalog.classes)
    return np.flatnonzero(
        [
            bool((names - {catalog.classes[label]}) & set(PurePosixPath(path).parent.parts))
            for path, label in zip(catalog.paths.tolist(), catalog.labels, strict=True)
        ]
    )


def _unmatched_masks(catalog: Catalog) -> tuple[list[str], list[str]]:
    """Masks without an image of their name, and images without a mask, in folders that have masks beside them."""
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
