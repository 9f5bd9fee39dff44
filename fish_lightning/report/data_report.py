"""What ``prepare`` found out about a data set: a table for the screen, and ``data_report.html`` with pictures."""

import base64
import io
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from html import escape
from itertools import chain, zip_longest
from pathlib import Path

import numpy as np
from PIL import Image

from fish_lightning.data.decoding import UnreadableImage, decode
from fish_lightning.data.inspection import Inspection, Rows
from fish_lightning.data.near_duplicates.search import photograph_numbers
from fish_lightning.files import whole_file
from fish_lightning.hardware import cores

THUMBNAIL = 96  # pixels, longer side; some 3 KB each
LISTED = 20  # file names of one finding, at most
SHOWN = 20  # rows of pictures of label errors, at most


def problems(found: Inspection, skip_unreadable: bool) -> list[str]:
    """What a training would stop at, in a few words each.

    Args:
        found: what was found.
        skip_unreadable: whether images that cannot be read are passed over (``data.on_error=skip``).
    """
    unreadable = 0 if skip_unreadable else len(found.unreadable)
    stops = [f"{unreadable:,} unreadable image{'s' * (unreadable > 1)}"] if unreadable else []
    if found.empty_classes:
        stops.append(f"class folders without an image ({', '.join(found.empty_classes[:3])})")
    return stops + (["a single class"] if len(found.catalog.classes) < 2 else [])


def findings(found: Inspection) -> list[tuple[int, str]]:
    """How often each thing to look at was found, and what it is; what was not found is left out."""
    counted = [
        (len(found.unreadable), "image that cannot be read", "images that cannot be read"),
        (len(found.empty_classes), "class folder without an image", "class folders without an image"),
        (
            len(found.label_errors),
            "photograph with copies under more than one label",
            "photographs with copies under more than one label",
        ),
        (len(found.misplaced), "image in a folder named as another class", "images in a folder named as another class"),
        (sum(len(rows) - 1 for rows in found.same_bytes), "file that is equal to another", "files equal to another"),
        (len(found.masks_without_image), "mask without an image", "masks without an image"),
        (len(found.images_without_mask), "image without a mask beside masks", "images without a mask beside masks"),
    ]
    return [(count, one if count == 1 else many) for count, one, many in counted if count]


def data_table(found: Inspection) -> str:
    """Counts a class, sizes and findings, for the screen."""
    catalog = found.catalog
    names = [*catalog.classes, *found.empty_classes]
    width = max(4, *(len(name) for name in names))
    lines = [f"{'kind':<{width}}  images  photographs  unreadable"]
    for name, images, photographs, unreadable in _per_class(found):
        lines.append(f"{name:<{width}}  {images:6,}  {photographs:>11}  {unreadable:10,}")
    sizes, kinds = _common(_sizes(found)), _common(_kinds(found))
    lines += ["", f"sizes   {sizes}", f"files   {kinds}", ""]
    lines += [f"{count:6,}  {what}" for count, what in findings(found)] or ["nothing to mend was found"]
    return "\n".join(lines)


def write_data_report(file: Path, found: Inspection, photographs: int, pictures: int) -> None:
    """Write the report as one HTML file that needs nothing else: styles and pictures are in it, scripts are not.

    Args:
        file: to write.
        found: what to report.
        photographs: rows of pictures at most, one a photograph.
        pictures: in a row at most.
    """
    catalog = found.catalog
    title = f"{catalog.root.resolve().name}: {len(catalog):,} images of {len(catalog.classes)} kinds"
    with ThreadPoolExecutor(cores()) as pool:
        body = "".join(
            (
                f"<h1>{escape(title)}</h1><p class=path>{escape(str(catalog.root.resolve()))}</p>",
                _tiles(found),
                _class_table(found),
                _size_table(found),
                _finding_lists(found),
                _label_errors(found, pictures, pool),
                _photograph_rows(found, photographs, pictures, pool),
            )
        )
    with whole_file(file) as temporary:
        page = PAGE.replace("{title}", escape(title)).replace("{body}", body)
        temporary.write_text(page, encoding="utf-8", errors="replace")


def _per_class(found: Inspection) -> list[tuple[str, int, str, int]]:
    """Name, images, photographs (a dash where unknown) and unreadable images of each class, the empty ones too."""
    catalog, unreadable = found.catalog, found.unreadable
    numbers = photograph_numbers(catalog)
    rows = []
    for label, name in enumerate(catalog.classes):
        mine = catalog.labels == label
        known = f"{len(np.unique(numbers[mine])):,}" if catalog.photographs_known else "-"
        rows.append((name, int(mine.sum()), known, int(mine[unreadable].sum())))
    return sorted(rows + [(name, 0, "-", 0) for name in found.empty_classes])


def _sizes(found: Inspection) -> Counter[str]:
    return Counter(f"{fact.width} x {fact.height}" for fact in found.facts if fact.error is None)


def _kinds(found: Inspection) -> Counter[str]:
    return Counter(f"{fact.kind} {fact.mode}" for fact in found.facts if fact.error is None)


def _common(counts: Counter[str], most: int = 4) -> str:
    """The most frequent of them, and how many there are besides."""
    said = [f"{what} ({count:,})" for what, count in counts.most_common(most)]
    return ", ".join(said + ([f"{len(counts) - most:,} others"] if len(counts) > most else [])) or "none"


def _tiles(found: Inspection) -> str:
    """The first numbers a reader wants."""
    catalog = found.catalog
    numbers = [(f"{len(catalog):,}", "images"), (f"{len(catalog.classes):,}", "kinds")]
    if catalog.photographs_known:
        numbers.append((f"{len(np.unique(photograph_numbers(catalog))):,}", "photographs"))
    tiles = "".join(f"<li><b>{number}</b> {what}" for number, what in numbers)
    bad = "".join(f"<li class=bad><b>{count:,}</b> {escape(what)}" for count, what in findings(found))
    return f"<ul class=tiles>{tiles}{bad or '<li class=good>nothing to mend was found'}</ul>"


def _class_table(found: Inspection) -> str:
    rows = _per_class(found)
    most = max(images for _, images, _, _ in rows)
    cells = "".join(
        f"<tr><th scope=row>{escape(name)}<td class=n>{images:,}<td class=n>{photographs}<td class=n>{unreadable:,}"
        f"<td class=bar><i style='width:{100 * images / most:.1f}%'></i>"
        for name, images, photographs, unreadable in rows
    )
    head = "<tr><th>kind<th class=n>images<th class=n>photographs<th class=n>unreadable<th>"
    return f"<h2>Images of each kind</h2><table>{head}{cells}</table>"


def _size_table(found: Inspection) -> str:
    def table(head: str, counts: Counter[str], most: int = 12) -> str:
        rows = "".join(f"<tr><th scope=row>{escape(w)}<td class=n>{n:,}" for w, n in counts.most_common(most))
        rest = f"<tr><td colspan=2>{len(counts) - most:,} others" if len(counts) > most else ""
        return f"<table><tr><th>{head}<th class=n>images{rows}{rest}</table>"

    sizes = table("width x height, pixels", _sizes(found))
    return f"<h2>Sizes and files</h2><div class=beside>{sizes}{table('format, channels', _kinds(found))}</div>"


def _finding_lists(found: Inspection) -> str:
    """Findings that a list of names says best."""
    paths = found.catalog.paths
    unreadable = [f"{paths[row]}: {found.facts[row].error}" for row in found.unreadable]
    misplaced = [
        f"{paths[row]} (labelled {found.catalog.classes[found.catalog.labels[row]]})" for row in found.misplaced
    ]
    equal = [" = ".join(paths[rows].tolist()) for rows in found.same_bytes]
    return "".join(
        (
            _list(
                "Images that cannot be read",
                unreadable,
                "A training stops at one, or skips it with data.on_error=skip.",
            ),
            _list("Class folders without an image", found.empty_classes, "Add images, or remove the folder."),
            _list("Images in a folder named as another class", misplaced, "The label comes from the outer folder."),
            _list("Masks without an image", found.masks_without_image, ""),
            _list("Images without a mask", found.images_without_mask, ""),
            _list("Equal files", equal, "The same bytes under more than one name."),
        )
    )


def _list(heading: str, names: Sequence[str], note: str) -> str:
    if not len(names):
        return ""
    items = "".join(f"<li>{escape(name)}" for name in names[:LISTED])
    rest = f"<p>and {len(names) - LISTED:,} more</p>" if len(names) > LISTED else ""
    return f"<h2>{escape(heading)} ({len(names):,})</h2><p>{escape(note)}</p><ul class=files>{items}</ul>{rest}"


def _label_errors(found: Inspection, pictures: int, pool: ThreadPoolExecutor) -> str:
    note = "Copies of one photograph under more than one label: at least one of the labels is wrong."
    groups = [_one_of_each_label(found, rows) for rows in found.label_errors]
    return _picture_rows("Suspected label errors", note, found, groups, (SHOWN, pictures), pool, captions=True)


def _one_of_each_label(found: Inspection, rows: Rows) -> Rows:
    """The same rows, the first of each label first, so that a shortened row shows them all."""
    _, first = np.unique(found.catalog.labels[rows], return_index=True)
    return np.concatenate([rows[first], np.delete(rows, first)])


def _photograph_rows(found: Inspection, photographs: int, pictures: int, pool: ThreadPoolExecutor) -> str:
    if not found.catalog.photographs_known:
        return (
            "<h2>Photographs</h2><p>Which images are copies of one photograph was not looked for "
            "(data.find_copies=true).</p>"
        )
    groups = found.photographs
    total = len(np.unique(photograph_numbers(found.catalog)))
    note = (
        f"{total:,} photographs, {len(groups):,} of them with more than one image. A row shows what is taken for "
        "copies of one photograph; a split by photograph keeps them on one side."
    )
    # A few of each kind, where they are too many.
    by_label: dict[int, list[Rows]] = {}
    for rows in groups:
        by_label.setdefault(int(found.catalog.labels[rows[0]]), []).append(rows)
    turns = chain.from_iterable(zip_longest(*by_label.values()))
    chosen = [rows for rows in turns if rows is not None][:photographs]
    chosen.sort(key=lambda rows: (int(found.catalog.labels[rows[0]]), int(rows[0])))
    return _picture_rows(
        "Photographs", note, found, chosen, (photographs, pictures), pool, left_out=len(groups) - len(chosen)
    )


def _picture_rows(
    heading: str,
    note: str,
    found: Inspection,
    groups: Sequence[Rows],
    most: tuple[int, int],
    pool: ThreadPoolExecutor,
    captions: bool = False,
    left_out: int = 0,
) -> str:
    """A section with one row of pictures a group.

    Args:
        heading: of the section.
        note: what a row is.
        found: the data set.
        groups: rows of the catalog for each row of pictures.
        most: rows at most, and pictures in one.
        pool: makes the thumbnails.
        captions: write label and path below each picture.
        left_out: groups that are not among ``groups``.
    """
    if not len(groups) and not left_out:
        return f"<h2>{heading}</h2><p>{note}</p>" if heading == "Photographs" else ""
    catalog = found.catalog
    html = [f"<h2>{heading} ({len(groups) + left_out:,})</h2><p>{note}</p>"]
    for rows in groups[: most[0]]:
        shown = rows[: most[1]].tolist()
        made = pool.map(lambda row: thumbnail(catalog.root / str(catalog.paths[row])), shown)
        cells = "".join(
            f"<figure><img src='{source}' {_described(str(catalog.paths[row]))}>"
            + (f"<figcaption>{_caption(found, row)}</figcaption>" if captions else "")
            + "</figure>"
            for row, source in zip(shown, made, strict=True)
        )
        name = f"{escape(catalog.classes[catalog.labels[rows[0]]])} <span>{escape(str(catalog.paths[rows[0]]))}</span>"
        more = f"<p class=more>+ {len(rows) - len(shown):,}</p>" if len(rows) > len(shown) else ""
        html.append(
            f"<section><h3>{name} <small>{len(rows):,} images</small></h3><div class=row>{cells}{more}</div></section>"
        )
    hidden = len(groups) + left_out - min(len(groups), most[0])
    if hidden:
        html.append(f"<p>{hidden:,} more are not shown.</p>")
    return "".join(html)


def _caption(found: Inspection, row: int) -> str:
    label, path = found.catalog.classes[found.catalog.labels[row]], str(found.catalog.paths[row])
    return f"<b>{escape(label)}</b> {escape(path)}"


def _described(path: str) -> str:
    """What a picture is, for those who do not see it and for those who point at it."""
    return f"alt='{escape(path)}' title='{escape(path)}'"


def thumbnail(file: Path) -> str:
    """A data URI with a small JPEG of an image file; of a grey square where it cannot be read."""
    try:
        image = Image.fromarray(decode(file))
    except UnreadableImage:
        image = Image.new("RGB", (THUMBNAIL, THUMBNAIL * 3 // 4), (150, 150, 150))
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=75)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root { color-scheme: light dark; --text: #1d2329; --soft: #5b6670; --page: #fff; --line: #dde2e7; --fill: #2f7d95;
  --tile: #f3f6f8; --bad: #a8281e; --good: #1a6e36; }
@media (prefers-color-scheme: dark) { :root { --text: #e4e8eb; --soft: #9aa6b0; --page: #14181c; --line: #313a42;
  --fill: #56a8c0; --tile: #1f262c; --bad: #ff8f84; --good: #74cf90; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 2rem 1.25rem 4rem; background: var(--page); color: var(--text);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.7rem; margin: 0; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .6rem; padding-top: .7rem; border-top: 1px solid var(--line); }
h3 { font-size: .95rem; margin: 1.1rem 0 .3rem; }
h3 span, h3 small, .path { color: var(--soft); font-weight: normal; overflow-wrap: anywhere; }
.path { margin: .2rem 0 0; }
p { max-width: 46rem; margin: .4rem 0; }
.tiles { display: flex; flex-wrap: wrap; gap: .6rem; list-style: none; padding: 0; margin: 1.2rem 0 0; }
.tiles li { background: var(--tile); border-radius: .5rem; padding: .5rem .9rem; }
.tiles b { font-size: 1.25rem; margin-right: .2rem; }
.bad { color: var(--bad); } .good { color: var(--good); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem 1.4rem .25rem 0; text-align: left; font-weight: normal; border-bottom: 1px solid var(--line); }
tr:first-child th { color: var(--soft); font-size: .85rem; }
.n { text-align: right; }
.bar { width: 16rem; min-width: 6rem; }
.bar i { display: block; height: .7rem; background: var(--fill); border-radius: .2rem; }
.beside { display: flex; flex-wrap: wrap; gap: 1rem 4rem; align-items: flex-start; }
.files { font: .85rem/1.6 ui-monospace, monospace; padding-left: 1.2rem; overflow-wrap: anywhere; }
.row { display: flex; flex-wrap: wrap; gap: .35rem; align-items: flex-start; }
figure { margin: 0; } figure img { display: block; max-width: 96px; border-radius: .25rem; }
figcaption { font-size: .75rem; max-width: 96px; overflow-wrap: anywhere; }
.more { color: var(--soft); margin: 0 .4rem; white-space: nowrap; }
</style>
</head>
<body>
{body}
</body>
</html>
"""
