"""The operators, by kind; importing this package fills the registry."""

from onnx_auditors.network.ops import (
    attention,
    casting,
    contrib,
    elementwise,
    indexing,
    integers,
    linear,
    losses,
    normalisation,
    pooling,
    quantised,
    recurrent,
    reduction,
    resampling,
    shape,
    signal,
)

__all__ = [
    "attention",
    "casting",
    "contrib",
    "elementwise",
    "indexing",
    "integers",
    "linear",
    "losses",
    "normalisation",
    "pooling",
    "quantised",
    "recurrent",
    "reduction",
    "resampling",
    "shape",
    "signal",
]
