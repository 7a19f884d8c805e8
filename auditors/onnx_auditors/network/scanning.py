"""Scan: a body that runs over slices of its inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import onnx
import torch
from torch import Tensor

from onnx_auditors.network.inlining import apply, check_turns, inline, known, rename, stack
from onnx_auditors.network.node import Refused, Value

if TYPE_CHECKING:
    from onnx_auditors.network.plan import Walker

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
    attributes, state, slid = _parts(proto, inputs)
    count, columns = len(slid), len(attributes["body"].output) - len(state)
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
        outputs.append(apply(walker, proto, _stacker(out_axes[i]), ordered, name))
    return rename(walker, proto.output, outputs, prefix)


def _parts(
    proto: onnx.NodeProto, inputs: Sequence[Value | None]
) -> tuple[Mapping[str, Any], list[Value], list[Value]]:
    """Returns a scan's attributes, its first state, and the inputs that are read in slices."""
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in proto.attribute}
    values = [v for v in inputs if v is not None]
    count = int(attributes["num_scan_inputs"])
    if not 0 < count <= len(values):
        raise Refused(f"num_scan_inputs is {count}, and there are {len(values)} inputs")
    return attributes, values[: len(values) - count], values[len(values) - count :]


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
        check_turns(walker, turn)
        inner = f"{prefix}{turn}/"
        given = []
        for i, (value, axis, backwards) in enumerate(slices):
            pick = _picker(axis, turns - 1 - turn if backwards else turn)
            given.append(apply(walker, proto, pick, [value], f"{inner}slice{i}"))
        results = inline(walker, body, scope, [*state, *given], inner)
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
    attributes, state, slid = _parts(proto, inputs[1:])
    backwards = attributes.get("directions", [0] * len(slid))
    batch, longest = slid[0].shape[:2]
    lengths = [longest] * batch
    if inputs[0] is not None:
        lengths = [int(n) for n in known(inputs[0], "the length of its sequences").tolist()]
    samples: list[list[Value]] = []
    for b, length in enumerate(lengths):
        inner = f"{prefix}{proto.output[0]}/sample{b}/"
        pick = _picker(0, b)
        own = [
            apply(walker, proto, pick, [v], f"{inner}in{i}") for i, v in enumerate([*state, *slid])
        ]
        slices = [(v, 0, back) for v, back in zip(own[len(state) :], backwards, strict=True)]
        last, yielded = _turns(walker, proto, scope, inner, own[: len(state)], slices, length)
        fill = _filler(longest - length)
        stacked = [apply(walker, proto, fill, c, f"{inner}y{i}") for i, c in enumerate(yielded)]
        samples.append([*last, *stacked])
    names = [prefix + (n or f"{proto.output[0]}/out{i}") for i, n in enumerate(proto.output)]
    outputs = [
        apply(walker, proto, stack, list(column), name)
        for name, column in zip(names, zip(*samples, strict=True), strict=False)
    ]
    return rename(walker, proto.output, outputs, prefix)


def _filler(missing: int) -> Callable[..., Tensor]:
    def stack(*tensors: Tensor) -> Tensor:
        x = torch.stack(tensors)
        return torch.cat([x, x.new_zeros(missing, *x.shape[1:])]) if missing else x

    return stack


def _picker(axis: int, position: int) -> Callable[[Tensor], Tensor]:
    return lambda x: x.select(axis, position)


def _stacker(axis: int) -> Callable[..., Tensor]:
    return lambda *tensors: torch.stack(tensors, axis)
