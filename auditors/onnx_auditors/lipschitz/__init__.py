"""How much layers and whole networks can amplify a change of their input, with proof."""

from onnx_auditors.lipschitz.bound import Bound
from onnx_auditors.lipschitz.bounds import operator_bounds
from onnx_auditors.lipschitz.operator import LinearOperator, compose, from_function, from_spec
from onnx_auditors.lipschitz.penalty import SpectralPenalty, penalty
from onnx_auditors.lipschitz.spec import OperatorSpec, average_pool

__all__ = [
    "Bound", "LinearOperator", "OperatorSpec", "SpectralPenalty", "average_pool", "compose",
    "from_function", "from_spec", "operator_bounds", "penalty",
]  # fmt: skip
