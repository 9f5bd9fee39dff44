"""``calibration.json``: what a run chose on its validation photographs, applied to images that have no label.

A training run writes the file beside ``summary.json``; ``predict`` and ``evaluate`` read it. The score ``knn`` compares
images with training photographs: their features are in ``training_features.npz`` beside it.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fish_lightning.errors import UserError, first_line
from fish_lightning.evaluation.arrays import Bools, Floats, save_arrays, softmax, stored_arrays
from fish_lightning.evaluation.calibration import COLDEST, HOTTEST
from fish_lightning.evaluation.unknowns import IMAGE_SCORES, SCORE, image_scores, neighbor_score
from fish_lightning.files import run_of, shown, write_json

FILE = "calibration.json"
FEATURES_FILE = "training_features.npz"
SCORES = (*IMAGE_SCORES, SCORE)
Stored = dict[str, Any]


def write_calibration(folder: Path, stored: Mapping[str, Any]) -> None:
    """Write ``calibration.json`` and, for the score ``knn``, ``training_features.npz``.

    Args:
        folder: run folder.
        stored: calibration as :func:`read_calibration` returns it.
    """
    unknown = dict(stored["unknown"] or {})
    if (features := unknown.get("features")) is not None:
        save_arrays(folder / FEATURES_FILE, {"features": features})
        unknown["features"] = FEATURES_FILE
    write_json(folder / FILE, {**stored, "unknown": unknown or None})


def read_calibration(ckpt: str | Path, classes: Sequence[str], weights: str, tta: str | None) -> tuple[Stored, str]:
    """Read the ``calibration.json`` of the run that a checkpoint belongs to.

    Args:
        ckpt: a checkpoint or a run folder. For a checkpoint outside a run folder, the file beside it is read.
        classes: the model's class names.
        weights: digest of the model's weights, see :func:`fish_lightning.models.checkpoint.weights_digest`.
        tta: the test-time augmentation; None without it.

    Returns:
        The content, and ``""``; for the score ``knn``, ``unknown.features`` is the (M, D) array of the training
        photographs' features. Where there is no such file, or it belongs to other weights (those of another epoch) or
        another test-time augmentation: an empty dict, and one line that says that nothing is calibrated.

    Raises:
        UserError: a file is corrupt, or belongs to other classes.
    """
    path = run_of(Path(ckpt).expanduser())
    file = (path.parent if path.is_file() else path) / FILE
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}, f"note: predictions are not calibrated: {shown(file)} not found"
    except (OSError, ValueError, RecursionError) as error:
        raise _corrupt(file, first_line(error)) from None
    if fault := calibration_fault(content):
        raise _corrupt(file, fault)
    if content["classes"] != list(classes):
        raise _corrupt(file, "its classes are not those of the checkpoint")
    if content.get("weights", weights) != weights:
        return {}, f"note: predictions are not calibrated: {shown(file)} belongs to different weights"
    if (fitted := content.get("tta")) != tta:
        return {}, f"note: predictions are not calibrated: {shown(file)} was fitted with tta={fitted or 'null'}"
    if content["unknown"] and content["unknown"]["score"] == SCORE:
        file = file.with_name(FEATURES_FILE)
        with stored_arrays(file, _corrupt) as arrays:
            features = arrays["features"]
        if features.dtype.kind != "f" or features.ndim != 2 or not features.size or not np.isfinite(features).all():
            raise _corrupt(file, "its features are not a matrix of finite numbers")
        content["unknown"]["features"] = features
    return content, ""


def _corrupt(file: Path, why: str) -> UserError:
    return UserError(f"{shown(file)} is corrupt ({why})\nrestore it, or remove it to continue without calibration")


def calibration_fault(content: Any) -> str:
    """Return what is wrong with the content of a ``calibration.json``, or ``""``."""
    if not isinstance(content, dict):
        return "it is not a JSON object"
    if missing := [key for key in ("temperature", "selective", "unknown", "classes") if key not in content]:
        return f"it has no {missing[0]}"
    selective, unknown = content["selective"], content["unknown"]
    if unknown is None:
        unknown = {"score": IMAGE_SCORES[0], "threshold": None}
    if not (isinstance(selective, dict) and isinstance(unknown, dict)):
        return "selective or unknown is not a JSON object"
    if unknown.get("score") not in SCORES:
        return f"unknown.score is not one of {', '.join(SCORES)}"
    numbers: tuple[tuple[str, Any, float, float, bool], ...] = (
        ("temperature", content["temperature"], COLDEST, HOTTEST, True),
        ("selective.threshold", selective.get("threshold"), 0, 1, True),
        ("selective.target_error", selective.get("target_error"), 0, 1, False),
        ("selective.candidates", selective.get("candidates"), 1, math.inf, True),
        ("unknown.threshold", unknown.get("threshold"), -math.inf, math.inf, True),
    )
    for name, value, low, high, optional in numbers:
        if value is None and optional:
            continue
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        # A temperature at a bound differs from it by rounding.
        if not number or not low <= round(value, 9) <= high:
            return f"{name} is {value!r:.30}, not a number" + (f" from {low:g} to {high:g}" if high < math.inf else "")
    return ""


@dataclass(frozen=True)
class Answers:
    """Calibrated answers for N images.

    Attributes:
        probabilities: (N, C) softmax of the logits.
        calibrated: (N, C) probabilities after temperature scaling; None without a temperature.
        uncertain: (N,) whether the highest of ``probabilities`` is below the threshold; None without one.
        unknown: (N,) whether the image is out of distribution, of none of the classes; None without a threshold.
    """

    probabilities: npt.NDArray[np.float64]
    calibrated: npt.NDArray[np.float64] | None
    uncertain: Bools | None
    unknown: Bools | None


def apply_calibration(stored: Mapping[str, Any], logits: Floats, features: Floats) -> Answers:
    """Apply a run's calibration to images.

    Args:
        stored: calibration from :func:`read_calibration`; empty: nothing is calibrated.
        logits: (N, C) logits.
        features: (N, D) features.

    Raises:
        UserError: logits are NaN or infinite.
    """
    temperature, selective = stored.get("temperature"), stored.get("selective") or {}
    unknown, probabilities = stored.get("unknown") or {}, softmax(logits)
    threshold, least = selective.get("threshold"), unknown.get("threshold")
    return Answers(
        probabilities=probabilities,
        calibrated=None if temperature is None else softmax(logits.astype(np.float64) / temperature),
        uncertain=None if threshold is None else np.less(probabilities.max(axis=1), threshold),
        unknown=None if least is None else np.less(unknown_score(unknown, logits, features), least),
    )


def unknown_score(unknown: Mapping[str, Any], logits: Floats, features: Floats) -> npt.NDArray[np.float64]:
    """Compute the score that detects unknown images, (N,), higher for images of the classes.

    Args:
        unknown: dict with ``score``, a name in ``SCORES``, and for ``knn`` the ``features`` (M, D) of training
            photographs.
        logits: (N, C) logits.
        features: (N, D) features; float16, which may overflow where logits do not, counts as its largest value.

    Raises:
        UserError: logits are NaN or infinite.
    """
    if unknown["score"] == SCORE:
        finite = features if np.isfinite(features).all() else np.nan_to_num(features)
        return neighbor_score(finite, unknown["features"])
    return image_scores(logits, features)[unknown["score"]]
