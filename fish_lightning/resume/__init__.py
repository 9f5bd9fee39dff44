"""Resuming a run exactly: where to resume and whether, checkpoints, signals, seeds of steps, metrics.csv."""
