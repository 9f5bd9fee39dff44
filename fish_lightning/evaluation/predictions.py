"""Predictions for labelled images, as arrays."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Predictions:
    """Predictions for N labelled images.

    Attributes:
        indices: (N,) int64, in the catalog.
        labels: (N,) int64, true classes.
        probabilities: (N, C) float32, 0 to 1.
    """

    indices: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float32]

    @property
    def preds(self) -> npt.NDArray[np.int64]:
        """(N,) most probable class."""
        preds: npt.NDArray[np.int64] = self.probabilities.argmax(1)
        return preds

    @property
    def correct(self) -> npt.NDArray[np.bool_]:
        """(N,) whether the most probable class is the true class."""
        return np.equal(self.preds, self.labels)
