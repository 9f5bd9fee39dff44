"""The trainer and the callbacks of a run: history, TensorBoard, NaN and infinite losses, progressive resizing."""
