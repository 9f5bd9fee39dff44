"""The generated sample set, in the archive's own layout: what a first run trains on, without a download.

Photographs come from :mod:`fish_lightning.data.sample.drawing`. Here each is saved as an original, turned into flipped
and rotated copies with their masks, as the archive's authors did, and entered in ``photographs.csv``, the truth about
which image is a copy of which photograph. Every picture depends on (seed, kind, photograph, copy) alone, so the bytes are the
same however many threads draw them.

On two cores the default set (9 kinds, 30 photographs of each, 4 copies of each photograph) takes about 20 s and 100 MB.
"""

import csv
import functools
import json
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from fish_lightning.data.sample.classes import KINDS, ORIGINAL_FOLDERS
from fish_lightning.data.sample.drawing import Array, draw_board, draw_photograph
from fish_lightning.errors import UserError
from fish_lightning.files import is_alive
from fish_lightning.hardware import cores

Pixels = npt.NDArray[np.uint8]

#: Written last into a set: which arguments it was drawn with.
RECIPE_FILE = "sample.json"
TABLE_FILE = "photographs.csv"

#: Few enough that many photographs share a board, and with it scratches that do not make them copies of each other.
BOARDS = 12

#: The archive names the files in its folder of originals by kind.
ORIGINAL_FILES = ("{}.JPG", "{}.jpg", "{}.JPG", "{:05}.png", "{}.jpg")

#: A temporary folder of another host is given up after this many seconds; the longest honest drawing takes minutes.
ABANDONED_AFTER = 24 * 3600.0


@dataclass(frozen=True)
class Recipe:
    """The arguments that decide every byte of a set; see :func:`make_sample`."""

    seed: int
    photographs_per_kind: int
    copies: int

    def rng(self, *key: int) -> np.random.Generator:
        """The generator of one picture. Keys of boards, photographs and copies start with a number of their own."""
        return np.random.default_rng([self.seed, *key])


BOARD, PHOTOGRAPH, COPY = 1, 2, 3  # first numbers of the keys


def make_sample(root: Path, seed: int = 0, photographs_per_kind: int = 30, copies: int = 4) -> None:
    """Draw the sample set into ``root`` unless it is there already.

    The set appears whole or not at all: it is drawn in a temporary folder beside ``root`` and renamed. Of two processes
    that draw at once, the second to finish throws its own away.

    Args:
        root: folder of the set; it gets ``Fish_Dataset``, ``NA_Fish_Dataset``, ``photographs.csv``, ``sample.json``.
        seed: 0 or more; another seed gives other boards, fish and copies.
        photographs_per_kind: 1 or more.
        copies: flipped and rotated copies of each photograph, 1 or more.

    Raises:
        UserError: an argument out of range, no space, no permission, or ``root`` holds something else.
    """
    recipe = Recipe(seed, photographs_per_kind, copies)
    if seed < 0 or photographs_per_kind < 1 or copies < 1:
        raise UserError(
            f"the sample data set cannot be drawn with data.sample_seed={seed}, "
            f"data.photographs_per_kind={photographs_per_kind}, data.copies={copies}\n"
            "the seed must be 0 or more, the other two 1 or more."
        )
    try:
        if is_finished(root, recipe):
            return
        root.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(root)
        place = tempfile.mkdtemp(
            prefix=f"{temporary_prefix(root)}{socket.gethostname()}@{os.getpid()}@", dir=root.parent
        )
        try:
            # One level down: mkdtemp's folder is closed to others, the finished set must not be.
            draft = Path(place, "set")
            draw_set(draft, recipe, shown_as=root)
            publish(draft, root, recipe)
        finally:
            shutil.rmtree(place, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"the sample data set cannot be drawn into {root}: {error.strerror or error}\n"
            "it is made once and takes about 100 MB: make room, or choose another folder for it with\n"
            "FISH_LIGHTNING_CACHE=DIR in the environment, or data.root=DIR"
        ) from error


def is_finished(root: Path, recipe: Recipe) -> bool:
    """Whether ``root`` holds this very set; an empty or missing folder does not.

    Raises:
        UserError: ``root`` holds another set or other files, which are not ours to delete.
    """
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    try:
        drawn_with = json.loads((root / RECIPE_FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        raise UserError(
            f"{root} is there but is no finished sample data set (no readable {RECIPE_FILE})\n"
            "remove it, or choose another folder with data.root=DIR"
        ) from None
    if drawn_with != asdict(recipe):
        raise UserError(
            f"{root} holds a sample data set drawn with other arguments\n"
            f"asked for: {asdict(recipe)}\nfound: {drawn_with}\n"
            "remove it, or choose another folder with data.root=DIR"
        )
    return True


def publish(draft: Path, root: Path, recipe: Recipe) -> None:
    """Rename a drawn set to its place, unless another process was faster: then its set is as good as ours."""
    try:
        draft.rename(root)
    except OSError:
        if not is_finished(root, recipe):
            raise


def temporary_prefix(root: Path) -> str:
    """How the names of temporary folders beside ``root`` begin; host, process and a random part follow."""
    return f".{root.name}.drawing@"


def remove_abandoned(root: Path) -> None:
    """Remove what killed runs left beside ``root``; folders of processes that may be alive stay."""
    for folder in root.parent.glob(f"{temporary_prefix(root)}*"):
        host, pid, _ = folder.name.removeprefix(temporary_prefix(root)).split("@")
        dead = host == socket.gethostname() and not is_alive(int(pid))
        if dead or time.time() - folder.stat().st_mtime > ABANDONED_AFTER:
            shutil.rmtree(folder, ignore_errors=True)


def draw_set(folder: Path, recipe: Recipe, shown_as: Path) -> None:
    """Draw all images of a set into ``folder``, which must not exist; ``shown_as`` is the name for the user."""
    jobs = [(kind, number) for kind in range(len(KINDS)) for number in range(recipe.photographs_per_kind)]
    print(f"drawing the sample data set: {len(jobs) * recipe.copies:,} images into {shown_as}", flush=True)
    for name in KINDS:
        for sub in (class_folder(name), masks_folder(name), originals_folder(name)):
            (folder / sub).mkdir(parents=True)
    # Threads, not processes: NumPy and OpenCV release the GIL, and nothing has to survive a fork or a spawn.
    with ThreadPoolExecutor(cores()) as pool:
        boards = list(pool.map(lambda i: draw_board(recipe.rng(BOARD, i)), range(BOARDS)))
        draw = functools.partial(draw_family, folder, recipe, boards)
        done = pool.map(lambda job: draw(*job), jobs)
        # disable=None: shown on a terminal only.
        rows = [
            row for family in tqdm(done, total=len(jobs), desc="drawing", unit="photo", disable=None) for row in family
        ]
    with (folder / TABLE_FILE).open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("path", "photograph"), *sorted(rows)])
    (folder / RECIPE_FILE).write_text(json.dumps(asdict(recipe)) + "\n", encoding="utf-8")


def draw_family(folder: Path, recipe: Recipe, boards: Sequence[Array], kind: int, number: int) -> list[tuple[str, str]]:
    """Draw one photograph and save it with its copies and their masks.

    Args:
        folder: of the set.
        recipe: of the set.
        boards: to draw the photograph on one of.
        kind: index into ``KINDS``.
        number: of the photograph within its kind, from 0.

    Returns:
        Rows (path below ``folder``, name of the photograph) of the table.
    """
    name = list(KINDS)[kind]
    rng = recipe.rng(PHOTOGRAPH, kind, number)
    image, mask = draw_photograph(KINDS[name], boards[int(rng.integers(len(boards)))], rng)
    original = f"{originals_folder(name)}/{ORIGINAL_FILES[kind % len(ORIGINAL_FILES)].format(number + 1)}"
    write_image(folder / original, image[..., ::-1])
    paths = [original]
    for copy in range(recipe.copies):
        turned, turned_mask = turned_copy(image, mask, recipe.rng(COPY, kind, number, copy))
        file = f"{number * recipe.copies + copy + 1:05}.png"
        write_image(folder / class_folder(name) / file, turned[..., ::-1])
        write_image(folder / masks_folder(name) / file, turned_mask)
        paths.append(f"{class_folder(name)}/{file}")
    return [(path, f"{name}/{number + 1:02}") for path in paths]


def turned_copy(image: Pixels, mask: Pixels, rng: np.random.Generator) -> tuple[Pixels, Pixels]:
    """A copy as the archive's: flipped, turned by any angle on the same canvas with black corners, half the size.

    Args:
        image: (H, W, 3).
        mask: (H, W), 0 to 255.
        rng: decides flips, angle, and a change of brightness of 3 % at most.

    Returns:
        The copy (H / 2, W / 2, 3) and its mask (H / 2, W / 2), each value 0 or 255.
    """
    height, width = mask.shape
    flip_x, flip_y = rng.choice([-1, 1], 2)
    turn = cv2.getRotationMatrix2D((0, 0), rng.uniform(-180, 180), 1)[:, :2] @ np.diag([flip_x, flip_y])
    middle = np.array([(width - 1) / 2, (height - 1) / 2])
    matrix = np.column_stack([turn, middle - turn @ middle])
    # Turned at full size and then averaged: sampling every second pixel at once would alias the scratches.
    size = (width // 2, height // 2)
    turned, turned_mask = (
        cv2.resize(cv2.warpAffine(pixels, matrix, (width, height)), size, interpolation=cv2.INTER_AREA)
        for pixels in (image, mask)
    )
    brighter = np.clip(turned * rng.uniform(0.97, 1.03), 0, 255)
    return brighter.astype(np.uint8), np.where(turned_mask > 127, 255, 0).astype(np.uint8)


def write_image(path: Path, pixels: Pixels) -> None:
    """Write (H, W) grey or (H, W, 3) BGR pixels in the format of the suffix.

    Raises:
        OSError: the disk is full, or the folder cannot be written (``cv2.imwrite`` would only return False).
    """
    quality = [cv2.IMWRITE_JPEG_QUALITY, 93] if path.suffix.lower() == ".jpg" else []
    _, data = cv2.imencode(path.suffix.lower(), np.ascontiguousarray(pixels), quality)
    path.write_bytes(data.tobytes())


def class_folder(name: str) -> str:
    """Folder of a kind's copies, below the root of the set."""
    return f"Fish_Dataset/Fish_Dataset/{name}/{name}"


def masks_folder(name: str) -> str:
    """Folder of their masks."""
    return f"{class_folder(name)} GT"


def originals_folder(name: str) -> str:
    """Folder of a kind's photographs before augmentation."""
    return f"NA_Fish_Dataset/{ORIGINAL_FOLDERS.get(name, name)}"
