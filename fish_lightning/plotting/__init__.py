"""Figures drawn with matplotlib from plain arrays and rows, for files and for TensorBoard."""
