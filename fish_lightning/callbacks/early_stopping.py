"""Early stopping that a run remembers when it goes on."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import EarlyStopping


class LastingEarlyStopping(EarlyStopping):
    """Lightning's; a run that it had ended, and that was killed before its test, is not trained on."""

    def on_train_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Stop at once where the checkpoint says that it was so."""
        if self.stopped_epoch > 0:
            trainer.should_stop = True
