"""Early stopping that stays in effect when a run is resumed."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import EarlyStopping


class ResumableEarlyStopping(EarlyStopping):
    """Lightning's callback, except that a run which it has stopped is not trained further when it is resumed."""

    def on_train_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Stop a run that was stopped before its checkpoint was saved."""
        if self.stopped_epoch > 0:
            trainer.should_stop = True
