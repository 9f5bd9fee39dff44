"""Report what ``prepare`` found about a data set: a table on the screen, and ``data_report.html`` with pictures."""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fish_lightning.data.inspection import Indices, Inspection
from fish_lightning.hardware import cores
from fish_lightning.names import aligned, printable, shortened
from fish_lightning.plotting.thumbnails import data_uri, thumbnail
from fish_lightning.report.pages import write_page

THUMBNAIL = 96  # pixels, longer side; some 3 KB each
MAX_NAMES = 20  # maximum number of file names per finding, and of classes in the terminal
SHOWN = 20  # maximum number of label errors with pictures

IN_TABLE = 100  # maximum number of classes in the table of the page

Gallery = dict[str, Any]
ClassRow = tuple[str, int, str, int]  # name, images, photographs, unreadable


def problems(found: Inspection, skip_unreadable: bool) -> list[str]:
    """List what would stop a training, in a few words each.

    Args:
        found: the inspected data set.
        skip_unreadable: whether unreadable images are skipped (``data.on_error=skip``).
    """
    unreadable = 0 if skip_unreadable else len(found.unreadable)
    stops = [f"{unreadable:,} unreadable image{'s' * (unreadable > 1)}"] if unreadable else []
    if found.empty_classes:
        stops.append(f"class folders without an image ({', '.join(found.empty_classes[:3])})")
    return stops + (["a single class"] if len(found.catalog.classes) < 2 else [])


def findings(found: Inspection) -> list[tuple[int, str]]:
    """Return the count and description of each problem found."""
    identical = sum(len(indices) - 1 for indices in found.same_bytes)
    counted = [
        (len(found.unreadable), "unreadable image", "unreadable images"),
        (len(found.empty_classes), "class folder without an image", "class folders without an image"),
        (len(found.label_errors), "photograph with more than one label", "photographs with more than one label"),
        (len(found.misplaced), "image in a folder of another class", "images in folders of other classes"),
        (
            len(found.wrong_suffixes),
            "file whose type contradicts its suffix",
            "files whose type contradicts their suffix",
        ),
        (identical, "file identical to another", "files identical to others"),
        (len(found.masks_without_image), "mask without an image", "masks without an image"),
        (len(found.images_without_mask), "image without a mask", "images without a mask"),
    ]
    return [(count, one if count == 1 else many) for count, one, many in counted if count]


def data_table(found: Inspection) -> str:
    """Return counts per class, sizes and findings as text."""
    rows = _per_class(found)
    table = _fewest_images(rows, MAX_NAMES)
    cells = [
        (shortened(printable(name)), f"{images:,}", photographs, f"{unreadable:,}")
        for name, images, photographs, unreadable in table
    ]
    lines = aligned([("class", "images", "photographs", "unreadable"), *cells], right=(1, 2, 3))
    if len(table) < len(rows):
        lines.append(f"{len(table)} of {len(rows):,} classes, those with the fewest images")
    sizes, types = _sizes_and_types(found)
    lines += ["", f"sizes   {_most_common(sizes)} (h x w)", f"files   {_most_common(types)}", ""]
    lines += [f"{count:6,}  {what}" for count, what in findings(found)] or ["no problems found"]
    return "\n".join(lines)


def write_data_report(file: Path, found: Inspection, photographs: int, pictures: int) -> None:
    """Write the report as one self-contained HTML file.

    Args:
        file: file to write.
        found: the inspected data set.
        photographs: maximum number of photographs with pictures.
        pictures: maximum number of pictures of a photograph.
    """
    catalog, classes = found.catalog, _per_class(found)
    sizes, types = _sizes_and_types(found)
    totals = [(len(catalog), "images"), (len(catalog.classes), "classes")]
    if catalog.photographs_known:
        totals.append((len(np.unique(catalog.photograph_numbers)), "photographs"))
    write_page(
        file,
        "data_report.html.j2",
        title=f"{catalog.root.resolve().name}: {len(catalog):,} images of {len(catalog.classes)} classes",
        root=catalog.root.resolve(),
        totals=totals,
        findings=findings(found),
        classes=_fewest_images(classes, IN_TABLE),
        left_out=max(0, len(classes) - IN_TABLE),
        most=max(images for _, images, _, _ in classes),
        sizes=sizes,
        types=types,
        lists=_lists(found),
        most_names=MAX_NAMES,
        galleries=[*_label_error_gallery(found, pictures), _photograph_gallery(found, photographs, pictures)],
    )


def _per_class(found: Inspection) -> list[ClassRow]:
    """Return name, images, photographs ("-" if unknown) and unreadable images of each class, empty ones included."""
    catalog, unreadable = found.catalog, found.unreadable
    numbers = catalog.photograph_numbers
    rows = []
    for label, name in enumerate(catalog.classes):
        mine = catalog.labels == label
        photographs = f"{len(np.unique(numbers[mine])):,}" if catalog.photographs_known else "-"
        rows.append((name, int(mine.sum()), photographs, int(mine[unreadable].sum())))
    return sorted(rows + [(name, 0, "-", 0) for name in found.empty_classes])


def _fewest_images(rows: list[ClassRow], most: int) -> list[ClassRow]:
    """Return at most ``most`` classes, those with the fewest images, by name."""
    return sorted(sorted(rows, key=lambda row: row[1])[:most])


def _sizes_and_types(found: Inspection) -> tuple[Counter[str], Counter[str]]:
    """Count the sizes, heights before widths, and the file types with their channels."""
    read = [fact for fact in found.facts if fact.error is None]
    sizes = Counter(f"{fact.height} x {fact.width}" for fact in read)
    return sizes, Counter(f"{fact.format} {fact.mode}" for fact in read)


def _most_common(counts: Counter[str], most: int = 4) -> str:
    """Return the most frequent values and the number of others as text."""
    frequent = [f"{what} ({count:,})" for what, count in counts.most_common(most)]
    return ", ".join(frequent + ([f"{len(counts) - most:,} others"] if len(counts) > most else [])) or "none"


def _lists(found: Inspection) -> dict[str, Sequence[str]]:
    """Return what the page shows as lists of files, a line each."""
    catalog, paths, facts = found.catalog, found.catalog.paths, found.facts
    return {
        "unreadable": [f"{paths[i]}: {facts[i].error}" for i in found.unreadable],
        "empty_classes": found.empty_classes,
        "misplaced": [f"{paths[i]} (labeled {catalog.classes[catalog.labels[i]]})" for i in found.misplaced],
        "wrong_suffixes": [f"{paths[i]}: {facts[i].format}" for i in found.wrong_suffixes],
        "masks_without_image": found.masks_without_image,
        "images_without_mask": found.images_without_mask,
        "same_bytes": [" = ".join(paths[indices].tolist()) for indices in found.same_bytes],
    }


def _label_error_gallery(found: Inspection, pictures: int) -> list[Gallery]:
    if not found.label_errors:
        return []
    note = "Copies of one photograph have more than one label: at least one of the labels is wrong."
    groups = []
    for indices in found.label_errors[:SHOWN]:
        _, first = np.unique(found.catalog.labels[indices], return_index=True)
        groups.append(np.concatenate([indices[first], np.delete(indices, first)]))  # each label is among the first
    rows = _rows(found, groups, pictures)
    total = len(found.label_errors)
    return [{"heading": "Suspected label errors", "note": note, "total": total, "rows": rows, "captions": True}]


def _photograph_gallery(found: Inspection, photographs: int, pictures: int) -> Gallery:
    """Return photographs with more than one image, evenly from all classes if there are too many."""
    groups, labels = found.photographs, found.catalog.labels
    if found.catalog.photographs_known:
        total = len(np.unique(found.catalog.photograph_numbers))
        note = (
            f"{total:,} photographs, {len(groups):,} of them with more than one image. Each row shows images that are "
            "probably copies of one photograph; split=photograph keeps them together."
        )
    else:
        note = "It is unknown which images are copies of one photograph: data.find_copies=true searches for them."
    by_label: dict[int, list[Indices]] = {}
    for indices in groups:
        by_label.setdefault(int(labels[indices[0]]), []).append(indices)
    rounds = chain.from_iterable(zip_longest(*by_label.values()))
    chosen = [indices for indices in rounds if indices is not None][:photographs]
    chosen.sort(key=lambda indices: (int(labels[indices[0]]), int(indices[0])))
    rows = _rows(found, chosen, pictures)
    return {"heading": "Photographs", "note": note, "total": len(groups), "rows": rows, "captions": False}


def _rows(found: Inspection, groups: Sequence[Indices], pictures: int) -> list[dict[str, Any]]:
    """Return a row of pictures for each group of images."""
    catalog = found.catalog

    def picture(i: int) -> dict[str, str]:
        path = str(catalog.paths[i])
        small = thumbnail(catalog.root / path, THUMBNAIL)
        return {"label": catalog.classes[catalog.labels[i]], "path": path, "src": data_uri(Image.fromarray(small))}

    with ThreadPoolExecutor(cores()) as pool:
        shown = [list(pool.map(picture, indices[:pictures].tolist())) for indices in groups]
    return [
        {
            "label": ", ".join(catalog.classes[label] for label in np.unique(catalog.labels[indices])),
            "path": catalog.paths[indices[0]],
            "total": len(indices),
            "pictures": row,
        }
        for indices, row in zip(groups, shown, strict=True)
    ]
