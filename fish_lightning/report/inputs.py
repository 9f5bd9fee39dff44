"""``report_inputs.npz``: what a report shows besides ``logits.npz``, so that it can be recomputed without the model."""

import json
import zipfile
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fish_lightning.errors import UserError, first_line
from fish_lightning.evaluation.arrays import Bools
from fish_lightning.evaluation.outputs import Outputs
from fish_lightning.files import shown, whole_file

FILE = "report_inputs.npz"
_OUTPUTS = tuple(field.name for field in fields(Outputs))


@dataclass(frozen=True)
class ReportInputs:
    """What only the model, the images or the config can tell.

    Attributes:
        training: of one image of each training photograph, see ``explanations.py``; None without any.
        leaked: (N,) whether a copy of an image in ``logits.npz`` is among the training images; None if unknown.
        heat: path of an error to its (h, w) heat map, 0 to 1.
        texts: plain values: ``title``, ``subset``, ``split``, ``root`` and ``training_root`` (where the images are),
            ``heat_note``, ``audit``, ``history``, ``config``, ``environment``, ``target_error``, ``stored`` (the
            training run's ``calibration.json``, of an evaluation) and ``fitted_to`` (digest of the weights, and tta).
    """

    training: Outputs | None
    leaked: Bools | None
    heat: dict[str, npt.NDArray[np.float16]]
    texts: dict[str, Any]

    def save(self, file: Path) -> None:
        """Write everything atomically: some 0.2 MB for 150 training photographs of 512 features."""
        arrays: dict[str, Any] = {"texts": np.array(json.dumps(self.texts))}
        if self.training is not None:
            arrays |= {f"training_{name}": getattr(self.training, name) for name in _OUTPUTS}
        if self.leaked is not None:
            arrays["leaked"] = self.leaked
        if self.heat:
            arrays["heat_paths"] = np.array(list(self.heat))
            arrays["heat"] = np.stack(list(self.heat.values()))
        with whole_file(file) as temporary, temporary.open("wb") as stream:
            np.savez_compressed(stream, **arrays)

    @classmethod
    def load(cls, file: Path) -> "ReportInputs":
        """Read what :meth:`save` wrote; nothing in the file is executed.

        Raises:
            UserError: no such file, or another one.
        """
        if not file.is_file():
            raise UserError(
                f"no {file.name} in {shown(file.parent)}: it was made with report=false or by an earlier version\n"
                "evaluate it with its model: without recompute=true"
            )
        try:
            with np.load(file, allow_pickle=False) as stored:
                trained, heat = "training_paths" in stored, "heat" in stored
                return cls(
                    training=Outputs(**{name: stored[f"training_{name}"] for name in _OUTPUTS}) if trained else None,
                    leaked=stored.get("leaked"),
                    heat=dict(zip(stored["heat_paths"].tolist(), stored["heat"], strict=True)) if heat else {},
                    texts=json.loads(str(stored["texts"])),
                )
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(f"{shown(file)} is corrupt or incomplete ({first_line(error)})") from None
