"""The network (a torchvision backbone with a new head, and its weights) and the LightningModule around it."""
