"""Operators that have graphs of their own: If, Loop and Scan.

A branch that is known while nodes are bound is written out, and so are the turns of a loop whose
number is known. A condition that depends on the model's input chooses between the results of both
branches where both can be computed without harm; anything else is refused, which makes the network
bind the graph anew for every input, where all conditions are known.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import onnx
import torch
from torch import Tensor

from onnx_auditors.errors import LimitExceeded
from onnx_auditors.network.node import DependsOnInput, Refused, Value, to_dtype
from onnx_auditors.network.reading import STANDARD_DOMAINS, names_in, subgraphs, walk

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
        name = "then_branch" if bool(condition.constant.reshape(())) else "else_branch"
        results = _inline(walker, branches[name], scope, [], f"{prefix}{proto.output[0]}/{name}/")
        return _rename(walker, proto.output, results, prefix)
    first = len(walker.steps)
    sides = [
        _inline(walker, branches[name], scope, [], f"{prefix}{proto.output[0]}/{name}/")
        for name in ("then_branch", "else_branch")
    ]
    added = [step.node.op_type for step in walker.steps[first:]]
    if not set(added) <= _HARMLESS | {"If"}:
        raise DependsOnInput("its condition depends on the model's input")
    chosen = {}
    for name, yes, no in zip(proto.output, *sides, strict=True):
        if yes.shape != no.shape or yes.meta.dtype != no.meta.dtype:
            raise DependsOnInput("its condition depends on the model's input, and so does a shape")
        chosen[name] = _apply(walker, proto, _choose, [condition, yes, no], prefix + name)
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
    limit = _known(inputs[0], "its number of turns") if inputs[0] is not None else None
    turns = None if limit is None else int(limit.reshape(()))
    going = inputs[1] if len(inputs) > 1 else None
    state = [v for v in inputs[2:] if v is not None]
    yielded: list[list[Value]] = [[] for _ in range(len(body.output) - 1 - len(state))]
    turn = 0
    while (turns is None or turn < turns) and _is_on(going):
        _check_turns(walker, turn)
        inner = f"{prefix}{proto.output[0]}/{turn}/"
        first = _number(walker, turn, inner + "turn")
        condition = going or _number(walker, 1, inner + "going", torch.bool)
        results = _inline(walker, body, scope, [first, condition, *state], inner)
        going, state = results[0], results[1 : 1 + len(state)]
        for column, value in zip(yielded, results[1 + len(state) :], strict=True):
            column.append(value)
        turn += 1
    outputs = list(state)
    for i, column in enumerate(yielded):
        name = prefix + (proto.output[len(state) + i] or f"{proto.output[0]}/yield{i}")
        if column:
            outputs.append(_apply(walker, proto, _stack, column, name))
        else:
            outputs.append(_empty(walker, body.output[1 + len(state) + i], name))
    return _rename(walker, proto.output, outputs, prefix)


_SCAN_OPSET = 9


def scan(
    walker: Walker,
    proto: onnx.NodeProto,
    inputs: Sequence[Value | None],
    scope: dict[str, Value],
    prefix: str,
) -> dict[str, Value]:
    """Runs its body over slices of its inputs and stacks what each turn yields."""
    if walker.binder.opset < _SCAN_OPSET:
        return _scan_of_batch(walker, proto, inputs, scope, prefix)
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in proto.attribute}
    body, count = attributes["body"], attributes["num_scan_inputs"]
    values = [v for v in inputs if v is not None]
    state, slid = values[: len(values) - count], values[len(values) - count :]
    columns = len(body.output) - len(state)
    axes = [a % len(v.shape) for a, v in zip(
        attributes.get("scan_input_axes", [0] * count), slid, strict=True)]  # fmt: skip
    backwards = attributes.get("scan_input_directions", [0] * count)
    turns = slid[0].shape[axes[0]]
    inner = f"{prefix}{proto.output[0]}/"
    slices = list(zip(slid, axes, backwards, strict=True))
    outputs, yielded = _turns(walker, proto, scope, inner, state, slices, turns)
    out_axes = attributes.get("scan_output_axes", [0] * columns)
    reversed_ = attributes.get("scan_output_directions", [0] * columns)
    for i, column in enumerate(yielded):
        name = prefix + (proto.output[len(state) + i] or f"{proto.output[0]}/yield{i}")
        ordered = column[::-1] if reversed_[i] else column
        outputs.append(_apply(walker, proto, _stacker(out_axes[i]), ordered, name))
    return _rename(walker, proto.output, outputs, prefix)


def _turns(
    walker: Walker,
    proto: onnx.NodeProto,
    scope: dict[str, Value],
    prefix: str,
    state: list[Value],
    slices: Sequence[tuple[Value, int, int]],
    turns: int,
) -> tuple[list[Value], list[list[Value]]]:
    """Returns a scan's last state, and what its turns yield, for each output of the body.

    Args:
        walker: The walk.
        proto: The node.
        scope: Values by the names that the body knows them by.
        prefix: What to put before a name to make it unique.
        state: The first state.
        slices: Scanned values with their axes, and whether they are read from the end.
        turns: Number of turns.
    """
    body = next(a.g for a in proto.attribute if a.name == "body")
    if turns == 0:
        raise Refused("it runs over an axis of size 0")
    yielded: list[list[Value]] = [[] for _ in range(len(body.output) - len(state))]
    for turn in range(turns):
        _check_turns(walker, turn)
        inner = f"{prefix}{turn}/"
        given = []
        for i, (value, axis, backwards) in enumerate(slices):
            pick = _picker(axis, turns - 1 - turn if backwards else turn)
            given.append(_apply(walker, proto, pick, [value], f"{inner}slice{i}"))
        results = _inline(walker, body, scope, [*state, *given], inner)
        state = results[: len(state)]
        for column, value in zip(yielded, results[len(state) :], strict=True):
            column.append(value)
    return list(state), yielded


def _scan_of_batch(
    walker: Walker,
    proto: onnx.NodeProto,
    inputs: Sequence[Value | None],
    scope: dict[str, Value],
    prefix: str,
) -> dict[str, Value]:
    """A scan of opset 8: sample by sample over the second axis, up to a length for each sample.

    What lies beyond a sample's length is 0, as in ONNX Runtime.
    """
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in proto.attribute}
    count, values = attributes["num_scan_inputs"], [v for v in inputs[1:] if v is not None]
    state, slid = values[: len(values) - count], values[len(values) - count :]
    backwards = attributes.get("directions", [0] * count)
    batch, longest = slid[0].shape[:2]
    lengths = [longest] * batch
    if inputs[0] is not None:
        lengths = [int(n) for n in _known(inputs[0], "the length of its sequences").tolist()]
    samples: list[list[Value]] = []
    for b, length in enumerate(lengths):
        inner = f"{prefix}{proto.output[0]}/sample{b}/"
        pick = _picker(0, b)
        own = [_apply(walker, proto, pick, [v], f"{inner}in{i}") for i, v in enumerate(values)]
        slices = [(v, 0, back) for v, back in zip(own[len(state) :], backwards, strict=True)]
        last, yielded = _turns(walker, proto, scope, inner, own[: len(state)], slices, length)
        fill = _filler(longest - length)
        stacked = [_apply(walker, proto, fill, c, f"{inner}y{i}") for i, c in enumerate(yielded)]
        samples.append([*last, *stacked])
    names = [prefix + (n or f"{proto.output[0]}/out{i}") for i, n in enumerate(proto.output)]
    outputs = [
        _apply(walker, proto, _stack, list(column), name)
        for name, column in zip(names, zip(*samples, strict=True), strict=False)
    ]
    return _rename(walker, proto.output, outputs, prefix)


def _filler(missing: int) -> Callable[..., Tensor]:
    def stack(*tensors: Tensor) -> Tensor:
        x = torch.stack(tensors)
        return torch.cat([x, x.new_zeros(missing, *x.shape[1:])]) if missing else x

    return stack


def _picker(axis: int, position: int) -> Callable[[Tensor], Tensor]:
    return lambda x: x.select(axis, position)


def _stacker(axis: int) -> Callable[..., Tensor]:
    return lambda *tensors: torch.stack(tensors, axis)


def _stack(*tensors: Tensor) -> Tensor:
    return torch.stack(tensors)


def _known(value: Value | None, what: str) -> Tensor:
    if value is None or value.constant is None:
        raise DependsOnInput(f"{what} depends on the model's input")
    return value.constant


def _is_on(going: Value | None) -> bool:
    return going is None or bool(_known(going, "its condition").reshape(()))


def _check_turns(walker: Walker, turn: int) -> None:
    walker.spend()
    if turn >= walker.binder.limits.max_iterations:
        raise LimitExceeded(
            f"a loop makes more than {walker.binder.limits.max_iterations:,} turns; that is the "
            "most that is accepted"
        )


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


def _inline(
    walker: Walker,
    graph: onnx.GraphProto,
    scope: dict[str, Value],
    given: Sequence[Value],
    prefix: str,
) -> list[Value]:
    """Writes a subgraph out and returns its outputs."""
    inner = scope | walker.stored(graph, prefix)
    for info, value in zip(graph.input, given, strict=True):
        inner[info.name] = walker.values[value.name] = value
    walker.nodes(graph.node, inner, prefix)
    missing = [o.name for o in graph.output if o.name not in inner]
    if missing:
        raise Refused(f"its graph's output '{missing[0]}' cannot be computed")
    return [inner[o.name] for o in graph.output]


def _apply(
    walker: Walker,
    proto: onnx.NodeProto,
    function: Callable[..., Tensor],
    values: Sequence[Value],
    name: str,
) -> Value:
    """Adds a step of the control node's own."""
    kind = values[-1].element_type
    return walker.add(proto, function, list(values), [name], lambda _, __: kind)[0]


def _pass(x: Tensor) -> Tensor:
    return x


_IDENTITY = onnx.helper.make_node("Identity", [""], [""])


def _rename(
    walker: Walker, names: Sequence[str], results: Sequence[Value], prefix: str
) -> dict[str, Value]:
    """Gives the results of a subgraph the names of the node's outputs."""
    renamed = {}
    for name, value in zip(names, results, strict=False):
        if not name:
            continue
        if value.name == prefix + name:
            renamed[name] = value
        elif value.constant is not None:
            renamed[name] = dataclasses.replace(value, name=prefix + name)
        else:
            renamed[name] = _apply(walker, _IDENTITY, _pass, [value], prefix + name)
    return renamed


def is_control(node: onnx.NodeProto) -> bool:
    """Says whether a node is one of these operators."""
    return node.op_type in OPERATORS and node.domain in STANDARD_DOMAINS


OPERATORS: dict[str, Control] = {"If": if_, "Loop": loop, "Scan": scan}
