"""The science: faithful networks from ONNX graphs, and the auditors that run on them."""
