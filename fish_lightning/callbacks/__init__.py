"""What a run does besides training: history, checkpoints, stopping cleanly, summary and plots, TensorBoard pictures."""
