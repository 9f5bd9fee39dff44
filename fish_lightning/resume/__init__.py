"""All that lets an interrupted run continue exactly: checkpoints, signals, seeds, metrics.csv, what must be equal."""
