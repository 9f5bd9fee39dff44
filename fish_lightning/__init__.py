"""fish_lightning: image-classification experiments with PyTorch Lightning and Hydra, from files to a tested model."""

import os

# When it is imported, albumentations checks the network for a newer version unless this is set.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

__version__ = "0.1.0"
