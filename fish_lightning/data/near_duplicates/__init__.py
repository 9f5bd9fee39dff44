"""Which images are copies of one photograph."""
