"""Early stopping that stays in effect when a run is resumed."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason


class ResumableEarlyStopping(EarlyStopping):
    """Lightning's callback, except that a run which it has stopped is not trained further when it is resumed.

    Lightning's ``stopped_epoch`` is ambiguous: it is 0 for a stop in the first epoch too.
    """

    def on_train_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Stop a run that was stopped before its checkpoint was saved."""
        if self.stopping_reason != EarlyStoppingReason.NOT_STOPPED:
            trainer.should_stop = True
