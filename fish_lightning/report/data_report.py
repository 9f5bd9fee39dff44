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
from fish_lightning.files import atomic_write
from fish_lightning.hardware import cores
from fish_lightning.names import printable, shortened
from fish_lightning.plotting.thumbnails import data_uri, thumbnail
from fish_lightning.report.pages import page_template

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
    names = [shortened(printable(name)) for name, *_ in table]
    width = max(5, *map(len, names))
    lines = [f"{'class':<{width}}  images  photographs  unreadable"]
    for name, (_, images, photographs, unreadable) in zip(names, table, strict=True):
        lines.append(f"{name:<{width}}  {images:6,}  {photographs:>11}  {unreadable:10,}")
    if len(table) < len(rows):
        lines.append(f"{len(table)} of {len(rows):,} classes, those with the fewest images")
    lines += ["", f"sizes   {_most_common(_sizes(found))} (h x w)", f"files   {_most_common(_types(found))}", ""]
    lines += [f"{count:6,}  {what}" for count, what in findings(found)] or ["no problems found"]
    return "\n".join(lines)


def write_data_report(file: Path, found: Inspection, photographs: int, pictures: int) -> None:
    """Write the report as one self-contained HTML file.

    Args:
        file: to write.
        found: the inspected data set.
        photographs: maximum number of photographs with pictures.
        pictures: maximum number of pictures of a photograph.
    """
    catalog, classes = found.catalog, _per_class(found)
    totals = [(len(catalog), "images"), (len(catalog.classes), "classes")]
    if catalog.photographs_known:
        totals.append((len(np.unique(catalog.photograph_numbers)), "photographs"))
    page = page_template("data_report.html.j2").render(
        title=f"{catalog.root.resolve().name}: {len(catalog):,} images of {len(catalog.classes)} classes",
        root=catalog.root.resolve(),
        totals=totals,
        findings=findings(found),
        classes=_fewest_images(classes, IN_TABLE),
        left_out=max(0, len(classes) - IN_TABLE),
        most=max(images for _, images, _, _ in classes),
        sizes=_frequent(_sizes(found)),
        types=_frequent(_types(found)),
        lists=_lists(found),
        galleries=[*_label_error_gallery(found, pictures), _photograph_gallery(found, photographs, pictures)],
    )
    with atomic_write(file) as temporary:
        temporary.write_text(page, encoding="utf-8")


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
    """Return at most so many classes, those with the fewest images, by name."""
    return sorted(sorted(rows, key=lambda row: row[1])[:most])


def _sizes(found: Inspection) -> Counter[str]:
    """Count the sizes, heights before widths."""
    return Counter(f"{fact.height} x {fact.width}" for fact in found.facts if fact.error is None)


def _types(found: Inspection) -> Counter[str]:
    return Counter(f"{fact.format} {fact.mode}" for fact in found.facts if fact.error is None)


def _most_common(counts: Counter[str], most: int = 4) -> str:
    """Return the most frequent values and the number of others as text."""
    frequent = [f"{what} ({count:,})" for what, count in counts.most_common(most)]
    return ", ".join(frequent + ([f"{len(counts) - most:,} others"] if len(counts) > most else [])) or "none"


def _frequent(counts: Counter[str], most: int = 12) -> dict[str, Any]:
    return {"rows": counts.most_common(most), "others": max(0, len(counts) - most)}


def _lists(found: Inspection) -> list[dict[str, Any]]:
    """Return the findings that are shown as lists of files."""
    catalog, paths = found.catalog, found.catalog.paths
    unreadable = [f"{paths[i]}: {found.facts[i].error}" for i in found.unreadable]
    misplaced = [f"{paths[i]} (labeled {catalog.classes[catalog.labels[i]]})" for i in found.misplaced]
    suffixes = [f"{paths[i]}: {found.facts[i].format}" for i in found.wrong_suffixes]
    identical = [" = ".join(paths[indices].tolist()) for indices in found.same_bytes]
    lists: list[tuple[str, Sequence[str], str]] = [
        ("Unreadable images", unreadable, "Training stops at them, or skips them with data.on_error=skip."),
        ("Class folders without an image", found.empty_classes, "Add images, or remove the folders."),
        ("Images in folders of other classes", misplaced, "The label comes from the outer folder."),
        ("Files whose type contradicts their suffix", suffixes, "Training reads them; other programs may not."),
        ("Masks without an image", found.masks_without_image, "No image has the name of the mask."),
        ("Images without a mask", found.images_without_mask, "The other images of the folder have one."),
        ("Identical files", identical, "Each line lists files with the same bytes."),
    ]
    return [
        {"heading": heading, "note": note, "total": len(names), "shown": names[:MAX_NAMES]}
        for heading, names, note in lists
        if len(names)
    ]


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
