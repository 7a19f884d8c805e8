"""The operator of a linear region, with the structure of its convolutions and matrices kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from onnx_auditors.lipschitz.affine import Affine
from onnx_auditors.lipschitz.graph import LOGITS, Graph, Node
from onnx_auditors.lipschitz.operator import LinearOperator, compose, from_spec
from onnx_auditors.lipschitz.pieces import Piece
from onnx_auditors.lipschitz.spec import OperatorSpec, average_pool
from onnx_auditors.lipschitz.transfer import transfer
from onnx_auditors.network.layers import Layer
from onnx_auditors.network.reading import names_in

_ISOMETRIES = names_in(
    "Identity Cast Dropout Reshape Flatten Squeeze Unsqueeze Transpose Neg DepthToSpace "
    "SpaceToDepth"
)
"""Operators that only move entries or change their signs, where none is lost."""
_AGREE = 1e-9
_MATRIX = 2

Lift = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Region:
    """A linear region as an operator of the same norms.

    Attributes:
        operator: Without the leading and trailing permutations, reshapes and changes of sign, which
            change no norm.
        lift: Takes an input of `operator`, [*input_shape], to one of the region.
    """

    operator: LinearOperator
    lift: Lift


def region(graph: Graph, piece: Piece) -> Region:
    """Returns the operator of a linear region."""
    source, members = piece.sources[0], list(piece.members)
    whole = transfer(graph, source, piece.index)
    assert whole is not None  # noqa: S101 - the region leads there
    straight = all(
        graph.nodes[k].parents == (p,)
        for k, p in zip(members, [source, *members[:-1]], strict=True)
    )
    if not straight:
        return Region(whole, lambda w: w)
    while len(members) > 1 and _is_isometry(graph.nodes[members[-1]], graph):
        members.pop()
    leading: list[Node] = []
    while len(members) > 1 and _is_isometry(graph.nodes[members[0]], graph):
        leading.append(graph.nodes[members.pop(0)])
    specs: list[OperatorSpec] = []
    for k in members:
        node = graph.nodes[k]
        if (
            len(specs) == 1
            and leading
            and leading[0].op == "InputMap"
            and _is_isometry(node, graph)
        ):
            specs = [_moved(specs[0], node)]
            leading.append(node)
            continue
        found = _input_scale(node) if node.op == "InputMap" else _spec(graph, node)
        if found is None or (specs and specs[-1].output_shape != found.input_shape):
            return _plain(graph, source, members, leading)
        specs.append(found)
        if node.op == "InputMap":
            leading.append(node)
    return Region(compose(*(from_spec(s, graph.device) for s in specs)), _lifter(leading, specs))


def _moved(scale: OperatorSpec, node: Node) -> OperatorSpec:
    """Returns the factors of the map to the model's input behind an isometry of its entries."""
    rule = node.rule
    assert isinstance(rule, Affine)  # noqa: S101 - isometries are linear
    factors = rule.linear(scale.w.reshape(1, 1, *scale.input_shape))[0, 0]
    return OperatorSpec("diagonal", tuple(factors.shape), weight=factors)


def _plain(graph: Graph, source: int, members: list[int], leading: list[Node]) -> Region:
    """Returns the map of a chain whose structure is not known."""
    if leading and leading[0].op == "InputMap":
        leading = []
    start = leading[-1].index if leading else source
    operator = transfer(graph, start, members[-1])
    assert operator is not None  # noqa: S101 - the chain leads there
    return Region(operator, _lifter(leading, []))


def _lifter(leading: list[Node], specs: list[OperatorSpec]) -> Lift:
    def lift(w: Tensor) -> Tensor:
        if leading and leading[0].op == "InputMap":
            # A permutation and then factors: undo the factors that its adjoint puts on again.
            factors = specs[0].w
            w = w.reshape(factors.shape) / torch.where(factors == 0, 1, factors)
        for node in reversed(leading):
            assert isinstance(node.rule, Affine)  # noqa: S101 - they are linear
            w = node.rule.adjoint(w.reshape(1, *node.shape))[0][0]
        return w

    return lift


def _is_isometry(node: Node, graph: Graph) -> bool:
    same = node.size == graph.nodes[node.parents[0]].size
    if node.name == LOGITS:
        return same
    return same and node.op in _ISOMETRIES


def _input_scale(node: Node) -> OperatorSpec | None:
    """Returns the factors of the map to the model's input, where it only permutes besides."""
    rule = node.rule
    assert isinstance(rule, Affine)  # noqa: S101 - as `graph_of` made it
    shape = rule.bias.shape
    draws = torch.Generator().manual_seed(0)
    y = torch.randn(2, *shape, generator=draws, dtype=torch.float64).to(rule.bias.device)
    ones = torch.ones_like(y[:1])
    (back,) = rule.adjoint(ones)
    rows = rule.linear(torch.ones_like(back))
    # Without negative entries, A A' is diagonal only if each column has one entry at most.
    both = rule.linear(*rule.adjoint(y))
    if back[0].numel() != y[0].numel() or not torch.allclose(both, y * rows.square(), rtol=_AGREE):
        return None
    return OperatorSpec("diagonal", tuple(shape[1:]), weight=rows[0, 0])


def _spec(graph: Graph, node: Node) -> OperatorSpec | None:
    """Returns the structure of an affine node; None where none fits, which is tried on a draw."""
    layer, rule = graph.layers.get(node.index), node.rule
    shape = graph.nodes[node.parents[0]].shape
    assert isinstance(rule, Affine)  # noqa: S101 - the node is linear
    if layer is None or shape[0] != 1 or node.shape[0] != 1:
        return None
    try:
        spec = _candidate(layer, rule, shape[1:], node.shape[1:])
    except ValueError:
        return None
    if spec is None or spec.output_shape != node.shape[1:]:
        return None
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(1, *shape, generator=draws, dtype=torch.float64).to(rule.bias.device)
    expected = rule.linear(x)[0]
    found = spec.to(x.device).forward(x[0])
    scale = float(expected.abs().max())
    return spec if float((found - expected).abs().max()) <= _AGREE * scale else None


def _candidate(
    layer: Layer, rule: Affine, shape: tuple[int, ...], out: tuple[int, ...]
) -> OperatorSpec | None:
    a, op = layer.attributes, layer.op_type
    if op in {"Conv", "ConvTranspose"} and rule.weight is not None:
        if a.get("auto_pad", b"NOTSET") not in {b"NOTSET", b"VALID"}:
            return None
        return OperatorSpec(
            "conv" if op == "Conv" else "conv_transpose", shape, weight=rule.weight,
            stride=tuple(a.get("strides", ())), pads=tuple(a.get("pads", ())),
            dilations=tuple(a.get("dilations", ())), groups=int(a.get("group", 1)),
            output_padding=tuple(a.get("output_padding", ())),
        )  # fmt: skip
    if op in {"Gemm", "MatMul"} and rule.weight is not None and rule.weight.dim() == _MATRIX:
        turned = not (op == "Gemm" and a.get("transB", 0))
        weight = rule.weight.T if turned else rule.weight
        return OperatorSpec("dense", shape, weight=weight * float(a.get("alpha", 1.0)))
    if op in {"BatchNormalization", "Mul", "Div"} and shape == out:
        ones = torch.ones(1, 1, *shape, dtype=torch.float64, device=rule.bias.device)
        return OperatorSpec("diagonal", shape, weight=rule.linear(ones)[0, 0])
    if op == "AveragePool" and a.get("auto_pad", b"NOTSET") == b"NOTSET":
        return average_pool(
            shape, tuple(a["kernel_shape"]), tuple(a.get("strides", ())), tuple(a.get("pads", ())),
            dilations=tuple(a.get("dilations", ())),
            count_include_pad=bool(a.get("count_include_pad", 0)),
            ceil_mode=bool(a.get("ceil_mode", 0)),
        )  # fmt: skip
    return None
