"""fish_lightning: image-classification experiments with PyTorch Lightning and Hydra, from files to a tested model."""

import os
import signal
import sys
import threading
from typing import Any

# When it is imported, albumentations checks the network for a newer version unless this is set.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")


def _stop(*_: Any) -> None:
    os.write(2, b"stopped\n")
    os._exit(130)


# Ctrl-C while a program imports what it needs, until fish_lightning.errors.program begins: nothing is written yet.
if (sys.argv[:1] == ["-m"] or os.path.basename(sys.argv[0] if sys.argv else "").startswith("fish-")) and (  # noqa: PTH119
    threading.current_thread() is threading.main_thread()
):
    signal.signal(signal.SIGINT, _stop)

__version__ = "0.1.0"
