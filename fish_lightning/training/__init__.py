"""The trainer and the callbacks of a run: history, TensorBoard, NaN losses, progressive resizing, best checkpoint."""
