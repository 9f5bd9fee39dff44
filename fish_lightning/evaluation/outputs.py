"""What a model computes for labeled images.

Comparisons are made from ``logits.npz``, and reports from it and ``report_inputs.npz``, without the model.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fish_lightning.data.catalog import Catalog, OfPhotographs
from fish_lightning.errors import UserError
from fish_lightning.evaluation.arrays import Bools, Floats, Names, corrupt, save_arrays, softmax, stored_arrays
from fish_lightning.files import shown

FILE, INPUTS_FILE = "logits.npz", "report_inputs.npz"
#: Names of the arrays in the file.
_KEYS = {"paths": "path", "labels": "label", "photographs": "photograph", "splits": "split"}
_KEYS |= {name: name for name in ("logits", "features", "classes")}


class Classified:
    """What follows from the logits of N labeled images of C classes."""

    labels: npt.NDArray[np.int64]
    logits: npt.NDArray[np.float32]

    @cached_property
    def probabilities(self) -> npt.NDArray[np.float64]:
        """(N, C) softmax of the logits, without a temperature."""
        return softmax(self.logits)

    @cached_property
    def preds(self) -> npt.NDArray[np.int64]:
        """(N,) most probable class."""
        return np.asarray(self.logits.argmax(1))

    @cached_property
    def confidence(self) -> npt.NDArray[np.float64]:
        """(N,) probability of the most probable class."""
        return np.asarray(self.probabilities.max(axis=1))

    @cached_property
    def correct(self) -> npt.NDArray[np.bool_]:
        """(N,) whether the most probable class is the true one."""
        return np.equal(self.preds, self.labels)


@dataclass(frozen=True)
class Predictions(Classified):
    """Logits and features of N labeled images.

    Attributes:
        indices: (N,) int64, indices in the catalog.
        labels: (N,) int64, true classes.
        logits: (N, C) float32 logits.
        features: (N, D) float16, input of the network's last layer.
    """

    indices: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    logits: npt.NDArray[np.float32]
    features: npt.NDArray[np.float16]


@dataclass(frozen=True)
class Outputs(Classified, OfPhotographs):
    """Logits and features of N labeled images of C classes.

    Attributes:
        paths: (N,) text, paths relative to the data set's folder.
        labels: (N,) int64, true classes.
        photographs: (N,) text, the group of copies an image belongs to; ``""`` where unknown.
        splits: (N,) text, split of each image: train, val or test.
        logits: (N, C) float32 logits.
        features: (N, D) float16, input of the network's last layer.
        classes: (C,) text, class names in label order.
    """

    paths: npt.NDArray[np.str_]
    labels: npt.NDArray[np.int64]
    photographs: npt.NDArray[np.str_]
    splits: npt.NDArray[np.str_]
    logits: npt.NDArray[np.float32]
    features: npt.NDArray[np.float16]
    classes: npt.NDArray[np.str_]

    @classmethod
    def of(cls, predictions: Predictions, catalog: Catalog) -> "Outputs":
        """Return predictions together with what a catalog knows about their images."""
        at = predictions.indices
        return cls(
            paths=catalog.paths[at],
            labels=predictions.labels,
            photographs=catalog.photographs[at],
            splits=catalog.splits[at],
            logits=predictions.logits,
            features=predictions.features,
            classes=np.array(catalog.classes),
        )

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, chosen: npt.NDArray[np.bool_] | npt.NDArray[np.int64]) -> "Outputs":
        """Return some of the images, by a mask or by indices."""
        per_image = {f.name: getattr(self, f.name)[chosen] for f in fields(self) if f.name != "classes"}
        return replace(self, **per_image)

    def subset(self, split: str) -> "Outputs":
        """Return the images of one split, or all for ``"all"``."""
        return self if split == "all" else self.take(self.splits == split)

    @classmethod
    def concatenated(cls, parts: Iterable["Outputs"]) -> "Outputs":
        """Return the images of one or more outputs of the same classes, one after the other."""
        every = list(parts)
        per_image = [f.name for f in fields(cls) if f.name != "classes"]
        return replace(every[0], **{name: np.concatenate([getattr(o, name) for o in every]) for name in per_image})

    @property
    def known_photographs(self) -> Names | None:
        """(N,) photograph of each image, or its path without one; None where no photograph is known."""
        return self.photographs_or_paths if self.photographs_known else None

    def save(self, file: Path) -> None:
        """Write the arrays atomically."""
        save_arrays(file, self.arrays())

    def arrays(self) -> dict[str, Any]:
        """Return the arrays by their names in the file."""
        return {key: getattr(self, name) for name, key in _KEYS.items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> "Outputs":
        """Return the outputs from what :meth:`arrays` returned."""
        return cls(**{name: arrays[key] for name, key in _KEYS.items()})

    @classmethod
    def load(cls, file: Path) -> "Outputs":
        """Read the arrays; nothing in the file is executed.

        Raises:
            UserError: there is no such file, or :meth:`save` did not write it.
        """
        if not file.is_file():
            raise UserError(f"no {file.name} in {file.parent}: an earlier version wrote that run; evaluate it again")
        with stored_arrays(file) as stored:
            outputs = cls.from_arrays(stored)
        n, c = len(outputs.paths), len(outputs.classes)
        lengths = {len(getattr(outputs, f.name)) for f in fields(cls) if f.name != "classes"}
        if lengths != {n} or outputs.logits.shape != (n, c) or outputs.features.ndim != 2:
            raise corrupt(file, "its arrays do not fit together")
        return outputs

    @classmethod
    def load_tested(cls, folder: Path) -> "Outputs":
        """Read the test images of a run without their features: those of two models cannot be compared."""
        test = cls.load(folder / FILE).subset("test")
        return replace(test, features=test.features[:, :0])


@dataclass(frozen=True)
class ReportInputs:
    """What only the model, the images or the config can tell.

    Attributes:
        training: outputs for one image of each training photograph, see ``explanations.py``; None without any.
        features: (M, D) features of training photographs, from the training run's calibration; None without any.
        leaked: (N,) whether a copy of an image in ``logits.npz`` is among the training images; None if unknown.
        heat: (h, w) heat map of each error, 0 to 1, by path.
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
        arrays: dict[str, Any] = {"texts": np.array(json.dumps(self.texts))}
        arrays |= {"features": self.features, "leaked": self.leaked}
        if self.training is not None:
            arrays |= {f"training_{name}": array for name, array in self.training.arrays().items()}
        if self.heat:
            arrays |= {"heat_paths": np.array(list(self.heat)), "heat": np.stack(list(self.heat.values()))}
        save_arrays(file, {name: array for name, array in arrays.items() if array is not None})

    @classmethod
    def load(cls, file: Path) -> "ReportInputs":
        """Read what :meth:`save` wrote; nothing in the file is executed.

        Raises:
            UserError: there is no such file, or :meth:`save` did not write it.
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
                heat=dict(zip(stored["heat_paths"].tolist(), stored["heat"], strict=True)) if "heat" in stored else {},
                texts=json.loads(str(stored["texts"])),
            )
