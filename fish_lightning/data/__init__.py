"""From image files to batches: source, catalog, split, dataset, data module."""
