"""Where images come from and how they reach the model: source, catalog, split, dataset, data module."""
