"""fish_lightning: image-classification experiments with PyTorch Lightning and Hydra, from files to a tested model."""

import os

# albumentations asks the network for its newest version when it is imported, unless this is set before.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
# torch's threads spin while they wait for one another. Where loader workers or other programs want the same cores, a
# step then takes up to twenty times as long (measured); sleeping costs little. Read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"
