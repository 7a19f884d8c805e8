"""Operators that have graphs of their own: If, Loop and Scan.

A branch that is known while nodes are bound is written out, and so are the turns of a loop whose
number is known. A condition that depends on the model's input chooses between the results of both
branches where both can be computed without harm; anything else is refused, which makes the network
bind the graph anew for every input, where all conditions are known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import onnx
import torch
from torch import Tensor

from onnx_auditors.network.inlining import apply, check_turns, inline, known, rename, stack
from onnx_auditors.network.node import DependsOnInput, Refused, Value, to_dtype
from onnx_auditors.network.reading import STANDARD_DOMAINS, names_in, subgraphs, walk
from onnx_auditors.network.scanning import scan

if TYPE_CHECKING:
    from onnx_auditors.network.plan import Walker

Control = Callable[
    ["Walker", onnx.NodeProto, Sequence["Value | None"], dict[str, Value], str], dict[str, Value]
]

_HARMLESS = names_in(
    "Abs Add And AveragePool BatchNormalization Cast Ceil Clip Concat Conv Elu Equal Erf Expand "
    "Flatten Floor Gelu Gemm GlobalAveragePool GlobalMaxPool Greater GreaterOrEqual HardSigmoid "
    "HardSwish Identity LayerNormalization LeakyRelu Less LessOrEqual LogSoftmax MatMul Max "
    "MaxPool Min Mul Neg Not Or Pad PRelu ReduceMax ReduceMean ReduceMin ReduceSum Relu Reshape "
    "Round Sigmoid Sign Slice Softmax Softplus Softsign Split Squeeze Sub Sum Tanh Transpose "
    "Unsqueeze Where Xor"
)
"""Operators that are finite, with finite gradients, wherever their inputs are."""


def captures(node: onnx.NodeProto) -> Iterator[str]:
    """Yields the names that a node's subgraphs read from the graph around them."""
    for graph in subgraphs(node):
        inner = list(walk(graph.node))
        made = {name for n in inner for name in n.output}
        made |= {i.name for i in graph.input} | {t.name for t in graph.initializer}
        for n in inner:
            for deeper in subgraphs(n):
                made |= {i.name for i in deeper.input} | {t.name for t in deeper.initializer}
        read = {name for n in inner for name in n.input} | {o.name for o in graph.output}
        yield from read - made - {""}


def if_(
    walker: Walker,
    proto: onnx.NodeProto,
    inputs: Sequence[Value | None],
    scope: dict[str, Value],
    prefix: str,
) -> dict[str, Value]:
    """Takes one of two branches, or chooses between their results."""
    condition = inputs[0]
    if condition is None:
        raise Refused("its condition is missing")
    branches = {a.name: a.g for a in proto.attribute}
    if condition.constant is not None:
        name = "then_branch" if _is_true(condition.constant) else "else_branch"
        results = inline(walker, branches[name], scope, [], f"{prefix}{proto.output[0]}/{name}/")
        return rename(walker, proto.output, results, prefix)
    first = len(walker.steps)
    sides = [
        inline(walker, branches[name], scope, [], f"{prefix}{proto.output[0]}/{name}/")
        for name in ("then_branch", "else_branch")
    ]
    added = [step.node.op_type for step in walker.steps[first:]]
    if not set(added) <= _HARMLESS | {"If"}:
        raise DependsOnInput("its condition depends on the model's input")
    chosen = {}
    counts = sorted({len(proto.output), *map(len, sides)})
    if len(counts) > 1:
        raise Refused(f"node and branches have {' and '.join(map(str, counts))} outputs")
    for name, yes, no in zip(proto.output, *sides, strict=True):
        if yes.shape != no.shape or yes.meta.dtype != no.meta.dtype:
            raise DependsOnInput("its condition depends on the model's input, and so does a shape")
        chosen[name] = apply(walker, proto, _choose, [condition, yes, no], prefix + name)
    return chosen


def _choose(condition: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    return torch.where(condition.reshape(()), yes, no)


def loop(
    walker: Walker,
    proto: onnx.NodeProto,
    inputs: Sequence[Value | None],
    scope: dict[str, Value],
    prefix: str,
) -> dict[str, Value]:
    """Repeats its body; what each turn yields beside the state is stacked."""
    body = proto.attribute[0].g
    limit = known(inputs[0], "its number of turns") if inputs[0] is not None else None
    turns = None if limit is None else int(limit.reshape(()))
    going = inputs[1] if len(inputs) > 1 else None
    state = [v for v in inputs[2:] if v is not None]
    yielded: list[list[Value]] = [[] for _ in range(len(body.output) - 1 - len(state))]
    turn = 0
    while (turns is None or turn < turns) and _is_on(going):
        check_turns(walker, turn)
        inner = f"{prefix}{proto.output[0]}/{turn}/"
        first = _number(walker, turn, inner + "turn")
        condition = going or _number(walker, 1, inner + "going", torch.bool)
        results = inline(walker, body, scope, [first, condition, *state], inner)
        going, state = results[0], results[1 : 1 + len(state)]
        for column, value in zip(yielded, results[1 + len(state) :], strict=True):
            column.append(value)
        turn += 1
    outputs = list(state)
    for i, column in enumerate(yielded):
        name = prefix + (proto.output[len(state) + i] or f"{proto.output[0]}/yield{i}")
        if column:
            outputs.append(apply(walker, proto, stack, column, name))
        else:
            outputs.append(_empty(walker, body.output[1 + len(state) + i], name))
    return rename(walker, proto.output, outputs, prefix)


def _is_on(going: Value | None) -> bool:
    return going is None or _is_true(known(going, "its condition"))


def _is_true(condition: Tensor) -> bool:
    if condition.numel() != 1:
        raise Refused(f"its condition has {condition.numel()} elements; expected one")
    return bool(condition)


def _number(walker: Walker, number: int, name: str, dtype: torch.dtype = torch.int64) -> Value:
    constant = torch.tensor(number, dtype=dtype, device=walker.device)
    element_type = onnx.TensorProto.BOOL if dtype == torch.bool else onnx.TensorProto.INT64
    return Value(name, constant.to("meta"), constant, element_type)


def _empty(walker: Walker, info: onnx.ValueInfoProto, name: str) -> Value:
    """Returns what a loop without turns yields: nothing, of the shape that the body declares."""
    tensor = info.type.tensor_type
    shape = [0, *(d.dim_value for d in tensor.shape.dim)]
    dtype = to_dtype(tensor.elem_type, walker.binder.floating)
    constant = torch.zeros(shape, dtype=dtype, device=walker.device)
    return Value(name, constant.to("meta"), constant, tensor.elem_type)


def is_control(node: onnx.NodeProto) -> bool:
    """Says whether a node is one of these operators."""
    return node.op_type in _OPERATORS and node.domain in STANDARD_DOMAINS


def bind(
    walker: Walker,
    proto: onnx.NodeProto,
    inputs: Sequence[Value | None],
    scope: dict[str, Value],
    prefix: str,
) -> dict[str, Value]:
    """Writes a control node out and returns what it computes, by the names of its outputs.

    Raises:
        Refused: Its attributes, inputs and graphs do not go together, or are not covered.
        LimitExceeded: It runs too many nodes, or makes too many turns.
    """
    try:
        return _OPERATORS[proto.op_type](walker, proto, inputs, scope, prefix)
    except (ArithmeticError, LookupError, TypeError, ValueError, RuntimeError) as error:
        raise Refused(f"attributes, inputs and graphs do not go together ({error})") from error


_OPERATORS: dict[str, Control] = {"If": if_, "Loop": loop, "Scan": scan}
