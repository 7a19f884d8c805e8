"""The operators, by kind; importing this package fills the registry."""

from onnx_auditors.network.ops import (
    elementwise,
    indexing,
    linear,
    normalisation,
    pooling,
    reduction,
    shape,
)

__all__ = ["elementwise", "indexing", "linear", "normalisation", "pooling", "reduction", "shape"]
