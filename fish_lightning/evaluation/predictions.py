"""What a model computes for labeled images, as arrays."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from fish_lightning.evaluation.arrays import softmax


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
        preds: npt.NDArray[np.int64] = self.logits.argmax(1)
        return preds

    @cached_property
    def confidence(self) -> npt.NDArray[np.float64]:
        """(N,) probability of the most probable class."""
        confidence: npt.NDArray[np.float64] = self.probabilities.max(axis=1)
        return confidence

    @cached_property
    def correct(self) -> npt.NDArray[np.bool_]:
        """(N,) whether the most probable class is the true one."""
        return np.equal(self.preds, self.labels)


@dataclass(frozen=True)
class Predictions(Classified):
    """Logits and features of N labeled images.

    Attributes:
        indices: (N,) int64, positions in the catalog.
        labels: (N,) int64, true classes.
        logits: (N, C) float32.
        features: (N, D) float16, input of the network's last layer.
    """

    indices: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    logits: npt.NDArray[np.float32]
    features: npt.NDArray[np.float16]
