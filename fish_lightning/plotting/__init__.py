"""Matplotlib figures of arrays and names, for files and TensorBoard."""
