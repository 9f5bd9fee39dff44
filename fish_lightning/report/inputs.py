"""``report_inputs.npz``: what a report needs besides ``logits.npz``, so that it can be recomputed without the model."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fish_lightning.errors import UserError
from fish_lightning.evaluation.arrays import Bools, Floats, save_arrays, stored_arrays
from fish_lightning.evaluation.outputs import Outputs
from fish_lightning.files import shown

FILE = "report_inputs.npz"


@dataclass(frozen=True)
class ReportInputs:
    """What only the model, the images or the config can tell.

    Attributes:
        training: of one image of each training photograph, see ``explanations.py``; None without any.
        features: (M, D) of training photographs, from the training run's calibration; None without any.
        leaked: (N,) whether a copy of an image in ``logits.npz`` is among the training images; None if unknown.
        heat: path of an error to its (h, w) heat map, 0 to 1.
        texts: plain values. The report shows ``title``, ``split``, ``history`` (rows of
            :class:`~fish_lightning.training.history.History`), ``best_epoch`` (of the tested checkpoint), ``config``
            (as YAML), ``environment`` (names and values of versions, device, seconds), ``heat_note`` (why there are no
            heat maps), ``audit`` (see ``explanations.py``, or why there is none) and ``training_photographs`` (their
            number). Besides: ``subset``, ``root`` and ``training_root`` (where the images are), ``report`` (whether it
            was written), ``candidates``, ``target_error``, ``stored`` (the training run's ``calibration.json``, of an
            evaluation) and ``fitted_to`` (digest of the weights, and tta).
    """

    training: Outputs | None
    features: Floats | None
    leaked: Bools | None
    heat: dict[str, npt.NDArray[np.float16]]
    texts: dict[str, Any]

    def save(self, file: Path) -> None:
        """Write everything atomically: some 0.2 MB for 150 training photographs of 512 features."""
        arrays = {"texts": np.array(json.dumps(self.texts)), "features": self.features, "leaked": self.leaked}
        if self.training is not None:
            arrays |= {f"training_{name}": array for name, array in self.training.arrays().items()}
        if self.heat:
            arrays |= {"heat_paths": np.array(list(self.heat)), "heat": np.stack(list(self.heat.values()))}
        save_arrays(file, {name: array for name, array in arrays.items() if array is not None})

    @classmethod
    def load(cls, file: Path) -> "ReportInputs":
        """Read what :meth:`save` wrote; nothing in the file is executed.

        Raises:
            UserError: no such file, or another one.
        """
        if not file.is_file():
            raise UserError(
                f"no {file.name} in {shown(file.parent)}: an earlier version wrote that folder\n"
                "evaluate it again with the model: leave out recompute=true"
            )
        with stored_arrays(file) as stored:
            training = {name.removeprefix("training_"): stored[name] for name in stored if "training_" in name}
            return cls(
                training=Outputs.from_arrays(training) if training else None,
                features=stored.get("features"),
                leaked=stored.get("leaked"),
                heat=dict(zip(stored.get("heat_paths", np.empty(0)).tolist(), stored.get("heat", ()), strict=True)),
                texts=json.loads(str(stored["texts"])),
            )
