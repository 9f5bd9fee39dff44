"""Early stopping that a resumed run remembers."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import EarlyStopping


class ResumableEarlyStopping(EarlyStopping):
    """Lightning's; a run that it has ended, and that was killed before its test, is not trained further."""

    def on_train_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Stop at once where the checkpoint says so."""
        if self.stopped_epoch > 0:
            trainer.should_stop = True
