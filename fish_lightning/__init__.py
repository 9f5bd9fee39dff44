"""fish_lightning: image-classification experiments with PyTorch Lightning and Hydra, from files to a tested model."""

import os

# albumentations asks the network for its newest version when it is imported, unless this is set before.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

__version__ = "0.1.0"
