"""Generate the sample set, in the fish archive's layout: what a first run trains on, without a download.

Photographs come from :mod:`fish_lightning.data.sample.drawing`. Each is saved as an original and as flipped and rotated
copies with their masks, as the archive's authors did, and listed in ``photographs.csv``, the ground truth of which
image is a copy of which photograph. Each image depends only on (seed, class, photograph, copy), so the bytes do not
depend on the number of threads.

On two cores the default set (9 classes, 30 photographs of each, 4 copies of each) takes about 20 s and 100 MB.

Two switches make a set with a known fault, to see whether the audit and the label suspects find it: ``shortcut`` (the
color of the board reveals the class in training images) and ``label_errors`` (photographs in the folder of another
class). The other images of such a set are the same as in the set without the fault.
"""

import functools
import json
import math
import os
import shutil
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
import numpy.typing as npt

from fish_lightning.data.listing import MASK_SUFFIX
from fish_lightning.data.sample.classes import CLASSES, ORIGINAL_FOLDERS
from fish_lightning.data.sample.drawing import SHORTCUT_COLORS, Array, draw_board, draw_photograph
from fish_lightning.data.sample.recipe import Recipe
from fish_lightning.errors import UserError
from fish_lightning.files import csv_table, is_alive, locked, node_lock, shown
from fish_lightning.hardware import in_threads, threads

Pixels = npt.NDArray[np.uint8]

#: The arguments a set was generated with; written last.
RECIPE_FILE = "sample.json"
TABLE_FILE = "photographs.csv"
#: Which photographs have a wrong label: for people and tests; the program does not read it.
ERRORS_FILE = "label_errors.csv"

#: Few, so that many photographs share a board, whose scratches do not make them copies of each other.
BOARDS = 12
#: Boards of each class in a set with a shortcut.
SHORTCUT_BOARDS = 3
#: Shares of a class's photographs that are test, and of the others that are val, in a set with a shortcut.
TEST_SHARE, VAL_SHARE = 0.15, 0.10

#: File names in the archive's folder of originals; they differ between classes.
ORIGINAL_FILES = ("{}.JPG", "{}.jpg", "{}.JPG", "{:05}.png", "{}.jpg")

#: Age in seconds at which another host's temporary folder counts as abandoned; drawing takes minutes at most.
ABANDONED_AFTER = 24 * 3600.0


#: First numbers of the keys of random generators.
BOARD, PHOTOGRAPH, COPY, SHORTCUT_BOARD, SPLIT, LABEL_ERROR = 1, 2, 3, 4, 5, 6


@dataclass(frozen=True)
class Family:
    """A photograph with its copies.

    Attributes:
        label: index into ``CLASSES`` of the fish that is drawn.
        number: number of the photograph within that class, from 0.
        given: index of the class in whose folder it is: ``label``, unless it is a planted error.
        place: position of the photograph within that folder, from 0.
        split: train, val or test in a set with a shortcut; ``""`` in others.
    """

    label: int
    number: int
    given: int
    place: int
    split: str

    @property
    def name(self) -> str:
        """The photograph's name in the table."""
        return f"{list(CLASSES)[self.given]}/{self.place + 1:02}"


def make_sample(root: Path, recipe: Recipe) -> None:
    """Generate the sample set in ``root`` unless it exists already.

    The set is complete or absent: it is drawn in a temporary folder beside ``root``, which is then renamed. If two
    machines draw it at the same time, the second to finish deletes its own.

    Args:
        root: folder of the set: ``Fish_Dataset``, ``NA_Fish_Dataset``, ``photographs.csv`` and ``sample.json``.
        recipe: arguments of the set.

    Raises:
        UserError: an argument is out of range, there is no space or no permission, or ``root`` contains something else.
    """
    seed, photographs = recipe.seed, recipe.photographs_per_kind
    if seed < 0 or photographs < 1 or recipe.copies < 1:
        raise UserError(
            f"the sample data set cannot be generated with data.source.seed={seed}, "
            f"data.source.photographs_per_kind={photographs}, data.source.copies={recipe.copies}\n"
            "the seed must be 0 or more, the other two 1 or more"
        )
    if recipe.shortcut and photographs < 3:
        raise UserError(
            f"data.source.shortcut=true requires data.source.photographs_per_kind of at least 3, one for each split, "
            f"not {photographs}"
        )
    if not 0 <= recipe.label_errors <= 0.5:
        raise UserError(f"data.source.label_errors={recipe.label_errors}: expected a share from 0 to 0.5")
    if recipe.label_errors and math.ceil(_error_count(recipe) / len(CLASSES)) >= photographs:
        raise UserError(
            f"data.source.label_errors={recipe.label_errors} leaves no photograph in the folder of a class\n"
            f"increase data.source.photographs_per_kind={photographs}"
        )
    try:
        if is_finished(root, recipe):
            return
        with locked(node_lock(root), "waiting for another program that is generating the sample data set"):
            if not is_finished(root, recipe):
                _make(root, recipe)
    except OSError as error:
        raise UserError(
            f"the sample data set cannot be written to {root}: {error.strerror or error}\n"
            "it is generated once and takes about 100 MB: free some space, or choose another folder with\n"
            "paths.cache=DIR, or FISH_LIGHTNING_CACHE=DIR in the environment"
        ) from error


def _make(root: Path, recipe: Recipe) -> None:
    """Generate the set beside ``root`` and rename it, unless another machine has finished the same set meanwhile."""
    root.parent.mkdir(parents=True, exist_ok=True)
    prefix, host = f".{root.name}.drawing@", socket.gethostname()
    for folder in root.parent.glob(f"{prefix}*"):  # of killed processes
        other_host, pid, _ = folder.name.removeprefix(prefix).split("@")
        dead = other_host == host and not is_alive(int(pid))
        if dead or time.time() - folder.stat().st_mtime > ABANDONED_AFTER:
            shutil.rmtree(folder, ignore_errors=True)
    with TemporaryDirectory(
        prefix=f"{prefix}{host}@{os.getpid()}@", dir=root.parent, ignore_cleanup_errors=True
    ) as place:
        # One level down: only its owner may open a temporary folder, while others may use the finished set.
        draft = Path(place, "set")
        draw_set(draft, recipe, shown_as=root)
        try:
            draft.rename(root)
        except OSError:
            if not is_finished(root, recipe):
                raise


def is_finished(root: Path, recipe: Recipe) -> bool:
    """Return whether ``root`` contains exactly this set; False for an empty or missing folder.

    Raises:
        UserError: ``root`` contains another set or other files, which are not ours to delete.
    """
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    try:
        found = json.loads((root / RECIPE_FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        raise UserError(
            f"{root} exists but is not a complete sample data set (no readable {RECIPE_FILE})\n"
            "for your own images: data=folder or data=fish; to generate the sample elsewhere: paths.cache=DIR"
        ) from None
    if found != recipe.arguments():
        raise UserError(
            f"{root} contains a sample data set generated with other arguments\n"
            f"requested: {recipe.arguments()}\nfound: {found}\n"
            "leave data.root out, or generate it elsewhere: paths.cache=DIR"
        )
    return True


def draw_set(folder: Path, recipe: Recipe, shown_as: Path) -> None:
    """Draw all images of a set into ``folder``, which must not exist; the user sees ``shown_as``."""
    families = plan(recipe)
    print(f"generating the sample data set: {len(families) * recipe.copies:,} images in {shown(shown_as)}", flush=True)
    for name in CLASSES:
        for sub in _folders(name):
            (folder / sub).mkdir(parents=True)
    with threads() as pool:
        boards = list(pool.map(lambda i: draw_board(_rng(recipe, BOARD, i)), range(BOARDS)))
        telling = list(pool.map(functools.partial(_draw_shortcut_boards, recipe), range(len(CLASSES))))

    def draw(family: Family) -> list[tuple[str, str, str]]:
        return _draw_family(folder, recipe, telling[family.label] if family.split == "train" else boards, family)

    rows = [row for family in in_threads(draw, families, "generating", "photo") for row in family]
    columns = 3 if recipe.shortcut else 2
    with csv_table(folder / TABLE_FILE) as table:
        table.writerows(row[:columns] for row in [("path", "photograph", "split"), *sorted(rows)])
    if recipe.label_errors:
        names = list(CLASSES)
        wrong = [(f.name, names[f.given], names[f.label]) for f in families if f.given != f.label]
        with csv_table(folder / ERRORS_FILE) as table:
            table.writerows([("photograph", "label", "true_label"), *sorted(wrong)])
    (folder / RECIPE_FILE).write_text(json.dumps(recipe.arguments()) + "\n", encoding="utf-8")


def _rng(recipe: Recipe, *key: int) -> np.random.Generator:
    """Return the generator of one image, board, or choice; the first number of ``key`` says what it is for."""
    return np.random.default_rng([recipe.seed, *key])


def plan(recipe: Recipe) -> list[Family]:
    """Return all photographs of a set, with the label and the split that each is given."""
    numbers = range(recipe.photographs_per_kind)
    given = planted_errors(recipe)
    places = [recipe.photographs_per_kind] * len(CLASSES)  # of the next photograph of another class
    families = []
    for label in range(len(CLASSES)):
        splits = shortcut_splits(recipe, label) if recipe.shortcut else [""] * len(numbers)
        for number in numbers:
            folder = given.get((label, number), label)
            place = number
            if folder != label:
                place, places[folder] = places[folder], places[folder] + 1
            families.append(Family(label, number, folder, place, splits[number]))
    return families


def planted_errors(recipe: Recipe) -> dict[tuple[int, int], int]:
    """Return the wrong label of each photograph (label, number) that has one."""
    rng = _rng(recipe, LABEL_ERROR)
    # The first of each class, then the second of each: no class loses many more than another.
    orders = [rng.permutation(recipe.photographs_per_kind) for _ in CLASSES]
    turns = [
        (int(label), int(orders[label][turn]))
        for turn in range(recipe.photographs_per_kind)
        for label in rng.permutation(len(CLASSES))
    ]
    chosen = turns[: _error_count(recipe)]
    return {(label, number): int((label + rng.integers(1, len(CLASSES))) % len(CLASSES)) for label, number in chosen}


def _error_count(recipe: Recipe) -> int:
    return round(recipe.label_errors * len(CLASSES) * recipe.photographs_per_kind)


def shortcut_splits(recipe: Recipe, label: int) -> list[str]:
    """Return the split of each photograph of a class: the board's color reveals the class in train only."""
    total = recipe.photographs_per_kind
    tested = max(1, round(TEST_SHARE * total))
    validated = max(1, round(VAL_SHARE * (total - tested)))
    splits = ["train"] * total
    for turn, number in enumerate(_rng(recipe, SPLIT, label).permutation(total)[: tested + validated].tolist()):
        splits[number] = "test" if turn < tested else "val"
    return splits


def _draw_shortcut_boards(recipe: Recipe, label: int) -> list[Array]:
    """Draw the boards of one class; none in a set without a shortcut."""
    count = SHORTCUT_BOARDS if recipe.shortcut else 0
    return [draw_board(_rng(recipe, SHORTCUT_BOARD, label, i), SHORTCUT_COLORS[label]) for i in range(count)]


def _draw_family(folder: Path, recipe: Recipe, boards: Sequence[Array], family: Family) -> list[tuple[str, str, str]]:
    """Draw one photograph on one of the boards, save it with its copies and their masks; return rows of the table."""
    key = (family.label, family.number)
    rng = _rng(recipe, PHOTOGRAPH, *key)
    image, mask = draw_photograph(list(CLASSES.values())[family.label], boards[int(rng.integers(len(boards)))], rng)
    name = list(CLASSES)[family.given]
    copies, masks, originals = _folders(name)
    original = ORIGINAL_FILES[family.given % len(ORIGINAL_FILES)].format(family.place + 1)
    paths = [f"{originals}/{original}"]
    _write_image(folder / paths[0], image[..., ::-1])
    for copy in range(recipe.copies):
        rotated, rotated_mask = _rotated_copy(image, mask, _rng(recipe, COPY, *key, copy))
        file = f"{family.place * recipe.copies + copy + 1:05}.png"
        _write_image(folder / copies / file, rotated[..., ::-1])
        _write_image(folder / masks / file, rotated_mask)
        paths.append(f"{copies}/{file}")
    return [(path, family.name, family.split) for path in paths]


def _rotated_copy(image: Pixels, mask: Pixels, rng: np.random.Generator) -> tuple[Pixels, Pixels]:
    """Make a copy as the archive does: flipped, rotated by any angle with black corners, half the size.

    Its brightness changes by at most 3 %; its mask is 0 or 255.
    """
    height, width = mask.shape
    flip_x, flip_y = rng.choice([-1, 1], 2)
    turn = cv2.getRotationMatrix2D((0, 0), rng.uniform(-180, 180), 1)[:, :2] @ np.diag([flip_x, flip_y])
    center = np.array([(width - 1) / 2, (height - 1) / 2])
    matrix = np.column_stack([turn, center - turn @ center])
    # Rotate at full size, then average: sampling every second pixel would alias the scratches.
    size = (width // 2, height // 2)
    rotated, rotated_mask = (
        cv2.resize(cv2.warpAffine(pixels, matrix, (width, height)), size, interpolation=cv2.INTER_AREA)
        for pixels in (image, mask)
    )
    brighter = np.clip(rotated * rng.uniform(0.97, 1.03), 0, 255)
    return brighter.astype(np.uint8), np.where(rotated_mask > 127, 255, 0).astype(np.uint8)


def _write_image(path: Path, pixels: Pixels) -> None:
    """Write gray or BGR pixels in the format of the suffix; ``cv2.imwrite`` would not raise if it cannot."""
    quality = [cv2.IMWRITE_JPEG_QUALITY, 93] if path.suffix.lower() == ".jpg" else []
    _, data = cv2.imencode(path.suffix.lower(), np.ascontiguousarray(pixels), quality)
    path.write_bytes(data.tobytes())


def _folders(name: str) -> tuple[str, str, str]:
    """Return the folders of a class, relative to the set: its copies, their masks, its photographs."""
    copies = f"Fish_Dataset/Fish_Dataset/{name}/{name}"
    return copies, copies + MASK_SUFFIX, f"NA_Fish_Dataset/{ORIGINAL_FOLDERS.get(name, name)}"
