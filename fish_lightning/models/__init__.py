"""The network and its weights, the LightningModule, metrics, schedules, and reading checkpoints."""
