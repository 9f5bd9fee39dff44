"""A trained model as one ONNX file: preprocessing in the graph, its parity with the checkpoint, its documents."""
