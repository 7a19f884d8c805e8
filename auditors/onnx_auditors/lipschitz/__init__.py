"""How much layers and whole networks can amplify a change of their input, with proof."""

from onnx_auditors.lipschitz.bound import Bound
from onnx_auditors.lipschitz.bounds import operator_bounds
from onnx_auditors.lipschitz.building import graph_of
from onnx_auditors.lipschitz.certify import (
    Certificates,
    LayerBounds,
    certificates,
    certified_radii,
    layer_certificates,
    local_bounds,
)
from onnx_auditors.lipschitz.composition import (
    Composed,
    all_layers,
    compose_bounds,
    global_radii,
)
from onnx_auditors.lipschitz.graph import Graph
from onnx_auditors.lipschitz.layer_bounds import layer_bounds, layer_message
from onnx_auditors.lipschitz.operator import LinearOperator, compose, from_function, from_spec
from onnx_auditors.lipschitz.penalty import SpectralPenalty, penalty
from onnx_auditors.lipschitz.pieces import Piece, pieces
from onnx_auditors.lipschitz.section import (
    dominant,
    largest_seen,
    network_bounds,
    network_message,
    with_shares,
)
from onnx_auditors.lipschitz.spec import OperatorSpec, average_pool

__all__ = [
    "Bound", "Certificates", "Composed", "Graph", "LayerBounds", "LinearOperator", "OperatorSpec",
    "Piece", "SpectralPenalty", "all_layers", "average_pool", "certificates", "certified_radii",
    "compose", "compose_bounds", "dominant", "from_function", "from_spec", "global_radii",
    "graph_of", "largest_seen", "layer_bounds", "layer_certificates", "layer_message",
    "local_bounds", "network_bounds", "network_message", "operator_bounds", "penalty", "pieces",
    "with_shares",
]  # fmt: skip
