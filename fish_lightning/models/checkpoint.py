"""Read a checkpoint and restore the classifier and its evaluation transform."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import albumentations as A
import torch

from fish_lightning import compat
from fish_lightning.errors import UserError, first_line
from fish_lightning.models.checkpoint_schema import require_well_formed
from fish_lightning.models.classifier import FishClassifier


def checkpoint_file(path: str | Path) -> Path:
    """Return the file that ``ckpt`` names; for a run folder, its best checkpoint."""
    file = Path(path).expanduser()
    return file / "checkpoints" / "best.ckpt" if file.is_dir() else file


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a training checkpoint with ``weights_only=True``, so that no code in it is executed, and check it.

    Raises:
        UserError: the file does not exist or is not a checkpoint of this project, or is corrupt or incomplete
            (:mod:`fish_lightning.models.checkpoint_schema`).
    """
    file = checkpoint_file(path)
    if not file.is_file():
        raise UserError(
            f"ckpt: no file {file} (working directory: {Path.cwd()})\npass one: ckpt=…/checkpoints/best.ckpt"
        )
    try:
        checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # arbitrary bytes make torch's unpickler raise anything
        code = compat.refused_global(error)
        why = f"it would run {code}; only data are loaded" if code else first_line(error)
        raise UserError(f"ckpt: {file} is not a checkpoint ({why})") from None
    needed = {"state_dict", "hyper_parameters", "FishDataModule", "precision"}
    if not isinstance(checkpoint, dict) or not needed <= set(checkpoint):
        raise UserError(
            f"ckpt: {file} is not a checkpoint of fish_lightning\nexpected …/checkpoints/best.ckpt of a run"
        )
    require_well_formed(checkpoint, file)
    return checkpoint


@contextmanager
def reporting_corruption(file: str | Path) -> Iterator[None]:
    """Report an error while reading a checkpoint in one line.

    Raises:
        UserError: the checkpoint is corrupt or incomplete.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, NotImplementedError) as error:
        raise UserError(
            f"ckpt: {file} is corrupt or incomplete ({type(error).__name__}: {first_line(error)})"
        ) from None


def restore(checkpoint: dict[str, Any], file: str | Path) -> tuple[FishClassifier, A.Compose]:
    """Restore the trained classifier and its evaluation transform.

    ``albumentations.from_dict`` runs after ``FishClassifier`` has checked :mod:`fish_lightning.models.whitelist`.

    Args:
        checkpoint: checkpoint from :func:`load_checkpoint`.
        file: path of the checkpoint, for the error message.

    Returns:
        The classifier in evaluation mode and its transform.

    Raises:
        UserError: the checkpoint is corrupt or incomplete.
    """
    with reporting_corruption(file):
        arguments = dict(checkpoint["hyper_parameters"]) | {"weights": None, "compile": False}
        model = FishClassifier(**arguments)
        model.load_state_dict(checkpoint["state_dict"])
        transform = A.from_dict(arguments["eval_transform"])
        assert isinstance(transform, A.Compose)
        return model.eval(), transform


def weights_digest(model: FishClassifier) -> str:
    """Return a digest of a model's weights, the same in training and after :func:`restore`."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())  # bf16 weights are restored as fp32
    return digest.hexdigest()
