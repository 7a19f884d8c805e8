"""Client of the onnx-audit service."""
