"""Generate the sample set, in the fish archive's layout: what a first run trains on, without a download.

Photographs come from :mod:`fish_lightning.data.sample.drawing`. Each is saved as an original and as flipped and rotated
copies with their masks, as the archive's authors did, and listed in ``photographs.csv``, the ground truth of which
image is a copy of which photograph. Each image depends only on (seed, class, photograph, copy), so the bytes do not
depend on the number of threads.

On two cores the default set (9 classes, 30 photographs of each, 4 copies of each) takes about 20 s and 100 MB.
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

from fish_lightning.data.sample.classes import CLASSES, ORIGINAL_FOLDERS
from fish_lightning.data.sample.drawing import Array, draw_board, draw_photograph
from fish_lightning.errors import UserError
from fish_lightning.files import is_alive, locked, node_lock, shown
from fish_lightning.hardware import cores

Pixels = npt.NDArray[np.uint8]

#: The arguments a set was generated with; written last.
RECIPE_FILE = "sample.json"
TABLE_FILE = "photographs.csv"

#: Few, so that many photographs share a board, whose scratches do not make them copies of each other.
BOARDS = 12

#: File names in the archive's folder of originals; they differ between classes.
ORIGINAL_FILES = ("{}.JPG", "{}.jpg", "{}.JPG", "{:05}.png", "{}.jpg")

#: Age in seconds at which another host's temporary folder counts as abandoned; drawing takes minutes at most.
ABANDONED_AFTER = 24 * 3600.0


@dataclass(frozen=True)
class Recipe:
    """The arguments that determine every byte of a set; see :func:`make_sample`."""

    seed: int
    photographs_per_kind: int
    copies: int

    def rng(self, *key: int) -> np.random.Generator:
        """Return the generator of one image; the first number of ``key`` is BOARD, PHOTOGRAPH or COPY."""
        return np.random.default_rng([self.seed, *key])


BOARD, PHOTOGRAPH, COPY = 1, 2, 3


def make_sample(root: Path, seed: int = 0, photographs_per_kind: int = 30, copies: int = 4) -> None:
    """Generate the sample set in ``root`` unless it exists already.

    The set is complete or absent: it is drawn in a temporary folder beside ``root``, which is then renamed. If two
    processes draw it at the same time, the second to finish deletes its own.

    Args:
        root: folder of the set: ``Fish_Dataset``, ``NA_Fish_Dataset``, ``photographs.csv`` and ``sample.json``.
        seed: 0 or more; determines boards, fish and copies.
        photographs_per_kind: photographs of each class, 1 or more.
        copies: flipped and rotated copies of each photograph, 1 or more.

    Raises:
        UserError: an argument is out of range, there is no space or no permission, or ``root`` contains something else.
    """
    recipe = Recipe(seed, photographs_per_kind, copies)
    if seed < 0 or photographs_per_kind < 1 or copies < 1:
        raise UserError(
            f"the sample data set cannot be generated with data.source.seed={seed}, "
            f"data.source.photographs_per_kind={photographs_per_kind}, data.source.copies={copies}\n"
            "the seed must be 0 or more, the other two 1 or more"
        )
    try:
        if is_finished(root, recipe):
            return
        with locked(node_lock(root), "waiting for another program that is generating the sample data set"):
            _make_missing(root, recipe)
    except OSError as error:
        raise UserError(
            f"the sample data set cannot be written to {root}: {error.strerror or error}\n"
            "it is generated once and takes about 100 MB: free some space, or choose another folder with\n"
            "paths.cache=DIR, or FISH_LIGHTNING_CACHE=DIR in the environment"
        ) from error


def _make_missing(root: Path, recipe: Recipe) -> None:
    """Generate the set unless another process of this machine has done so meanwhile."""
    if is_finished(root, recipe):
        return
    root.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(root)
    place = tempfile.mkdtemp(prefix=f"{temporary_prefix(root)}{socket.gethostname()}@{os.getpid()}@", dir=root.parent)
    try:
        # One level down: only its owner may open mkdtemp's folder, while others may use the finished set.
        draft = Path(place, "set")
        draw_set(draft, recipe, shown_as=root)
        publish(draft, root, recipe)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def standard_name(seed: int, photographs_per_kind: int, copies: int) -> str:
    """Return the name of a set's folder, as in ``conf/data/sample.yaml``."""
    return f"sample-{seed}-{photographs_per_kind}x{copies}"


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
    if found != asdict(recipe):
        raise UserError(
            f"{root} contains a sample data set generated with other arguments\n"
            f"requested: {asdict(recipe)}\nfound: {found}\n"
            "leave data.root out, or generate it elsewhere: paths.cache=DIR"
        )
    return True


def publish(draft: Path, root: Path, recipe: Recipe) -> None:
    """Rename a finished set to ``root``, unless another process has already finished the same set."""
    try:
        draft.rename(root)
    except OSError:
        if not is_finished(root, recipe):
            raise


def temporary_prefix(root: Path) -> str:
    """Return the prefix of temporary folders beside ``root``; host, process and a random part follow."""
    return f".{root.name}.drawing@"


def remove_abandoned(root: Path) -> None:
    """Remove temporary folders that killed processes left beside ``root``."""
    for folder in root.parent.glob(f"{temporary_prefix(root)}*"):
        host, pid, _ = folder.name.removeprefix(temporary_prefix(root)).split("@")
        dead = host == socket.gethostname() and not is_alive(int(pid))
        if dead or time.time() - folder.stat().st_mtime > ABANDONED_AFTER:
            shutil.rmtree(folder, ignore_errors=True)


def draw_set(folder: Path, recipe: Recipe, shown_as: Path) -> None:
    """Draw all images of a set into ``folder``, which must not exist; the user sees ``shown_as``."""
    jobs = [(label, number) for label in range(len(CLASSES)) for number in range(recipe.photographs_per_kind)]
    print(f"generating the sample data set: {len(jobs) * recipe.copies:,} images in {shown(shown_as)}", flush=True)
    for name in CLASSES:
        for sub in (class_folder(name), masks_folder(name), originals_folder(name)):
            (folder / sub).mkdir(parents=True)
    # Threads suffice: NumPy and OpenCV release the GIL.
    with ThreadPoolExecutor(cores()) as pool:
        boards = list(pool.map(lambda i: draw_board(recipe.rng(BOARD, i)), range(BOARDS)))
        draw = functools.partial(draw_family, folder, recipe, boards)
        done = pool.map(lambda job: draw(*job), jobs)
        bar = tqdm(done, total=len(jobs), desc="generating", unit="photo", disable=None)  # on a terminal only
        rows = [row for family in bar for row in family]
    with (folder / TABLE_FILE).open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("path", "photograph"), *sorted(rows)])
    (folder / RECIPE_FILE).write_text(json.dumps(asdict(recipe)) + "\n", encoding="utf-8")


def draw_family(
    folder: Path, recipe: Recipe, boards: Sequence[Array], label: int, number: int
) -> list[tuple[str, str]]:
    """Draw one photograph and save it with its copies and their masks.

    Args:
        folder: of the set.
        recipe: of the set.
        boards: one of them becomes the background.
        label: index into ``CLASSES``.
        number: of the photograph within its class, from 0.

    Returns:
        Rows (path relative to ``folder``, name of the photograph) of the table.
    """
    name = list(CLASSES)[label]
    rng = recipe.rng(PHOTOGRAPH, label, number)
    image, mask = draw_photograph(CLASSES[name], boards[int(rng.integers(len(boards)))], rng)
    original = f"{originals_folder(name)}/{ORIGINAL_FILES[label % len(ORIGINAL_FILES)].format(number + 1)}"
    write_image(folder / original, image[..., ::-1])
    paths = [original]
    for copy in range(recipe.copies):
        rotated, rotated_mask = rotated_copy(image, mask, recipe.rng(COPY, label, number, copy))
        file = f"{number * recipe.copies + copy + 1:05}.png"
        write_image(folder / class_folder(name) / file, rotated[..., ::-1])
        write_image(folder / masks_folder(name) / file, rotated_mask)
        paths.append(f"{class_folder(name)}/{file}")
    return [(path, f"{name}/{number + 1:02}") for path in paths]


def rotated_copy(image: Pixels, mask: Pixels, rng: np.random.Generator) -> tuple[Pixels, Pixels]:
    """Make a copy as the archive does: flipped, rotated by any angle with black corners, half the size.

    Args:
        image: (H, W, 3).
        mask: (H, W), 0 to 255.
        rng: of flips, angle, and a change of brightness of at most 3 %.

    Returns:
        The copy (H / 2, W / 2, 3) and its mask (H / 2, W / 2), each value 0 or 255.
    """
    height, width = mask.shape
    flip_x, flip_y = rng.choice([-1, 1], 2)
    turn = cv2.getRotationMatrix2D((0, 0), rng.uniform(-180, 180), 1)[:, :2] @ np.diag([flip_x, flip_y])
    centre = np.array([(width - 1) / 2, (height - 1) / 2])
    matrix = np.column_stack([turn, centre - turn @ centre])
    # Rotate at full size, then average: sampling every second pixel would alias the scratches.
    size = (width // 2, height // 2)
    rotated, rotated_mask = (
        cv2.resize(cv2.warpAffine(pixels, matrix, (width, height)), size, interpolation=cv2.INTER_AREA)
        for pixels in (image, mask)
    )
    brighter = np.clip(rotated * rng.uniform(0.97, 1.03), 0, 255)
    return brighter.astype(np.uint8), np.where(rotated_mask > 127, 255, 0).astype(np.uint8)


def write_image(path: Path, pixels: Pixels) -> None:
    """Write (H, W) grey or (H, W, 3) BGR pixels in the format of the suffix.

    Raises:
        OSError: the file cannot be written (``cv2.imwrite`` would only return False).
    """
    quality = [cv2.IMWRITE_JPEG_QUALITY, 93] if path.suffix.lower() == ".jpg" else []
    _, data = cv2.imencode(path.suffix.lower(), np.ascontiguousarray(pixels), quality)
    path.write_bytes(data.tobytes())


def class_folder(name: str) -> str:
    """Return the folder of a class's copies, relative to the set."""
    return f"Fish_Dataset/Fish_Dataset/{name}/{name}"


def masks_folder(name: str) -> str:
    """Return the folder of their masks."""
    return f"{class_folder(name)} GT"


def originals_folder(name: str) -> str:
    """Return the folder of a class's photographs before augmentation."""
    return f"NA_Fish_Dataset/{ORIGINAL_FOLDERS.get(name, name)}"
