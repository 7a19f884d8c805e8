"""Runs a graph that was exported for one batch size at another, where that is provably the same.

A plan of a graph with batch k is rewritten for n rows by induction over its steps: if every value
that a step reads has one row per sample along some axis, and the operator computes each row of its
result from the same row alone, its result has one row per sample too, along an axis that the rule
knows. A sample may have several entries along that axis, next to each other, as where heads of an
attention are joined to the batch. Reshape and Expand get that axis rewritten, since they name it;
constants stay those of batch k. A step that no rule covers ends the attempt, and the graph is
mapped over its own batch instead.
"""

from __future__ import annotations

import dataclasses

import torch

from onnx_auditors.network.batch_rules import NotBatchwise, View, require, rule
from onnx_auditors.network.node import Refused, Value
from onnx_auditors.network.plan import Binder, Plan, Step, Walker

_LEAST_OPSET = 13
"""Before it Softmax flattens, and axes are attributes here and inputs there."""


def rewrite(binder: Binder, plan: Plan, batch: int, rows: int, device: torch.device) -> Plan:
    """Returns a plan for n rows that computes on each what the given one computes.

    Args:
        binder: The binder of the graph.
        plan: Its plan at its own batch.
        batch: That batch.
        rows: The batch of the result.
        device: Where constants go.

    Raises:
        NotBatchwise: It cannot be shown that rows do not mix.
    """
    if binder.opset < _LEAST_OPSET:
        raise NotBatchwise
    made = {name for step in plan.steps for name in step.outputs}
    values: dict[str, Value] = {}
    for name, value in plan.values.items():
        if value.constant is not None:
            values[name] = value
        elif name not in made:
            values[name] = _with_rows(value, batch, rows)
    axes = {name: (0, 1) for name, value in values.items() if value.constant is None}
    walker = Walker(binder, device, values)
    for step in plan.steps:
        inputs = [plan.values[name] if name else None for name in step.reads]
        along = {axes[v.name] for v in inputs if v and v.constant is None}
        if len(along) != 1:
            raise NotBatchwise
        shapes = [v.shape if v else () for v in inputs]
        view = View(step, inputs, shapes, plan.shape(_first(step)), batch, *along.pop())
        given = [values[name] if name else None for name in step.reads]
        changes, axis = rule(view)(view, rows)
        for index, constant in changes.items():
            name = f"{_first(step)}/rows{index}"
            kind = inputs[index].element_type  # type: ignore[union-attr] # rules change what is there
            values[name] = Value(name, constant.to("meta"), constant.to(device), kind)
            given[index] = values[name]
        for value in _call(walker, step, given):
            before = plan.shape(value.name)
            entries = before[axis] // batch
            require(value.shape == (*before[:axis], entries * rows, *before[axis + 1 :]))
            values[value.name], axes[value.name] = value, (axis, entries)
    moved = frozenset(name for name, place in axes.items() if place != (0, 1))
    return Plan(walker.steps, values, moved)


def _call(walker: Walker, step: Step, given: list[Value | None]) -> list[Value]:
    try:
        return [v for v in walker.call(step.node, given, step.outputs) if v.name]
    except Refused as reason:
        raise NotBatchwise from reason


def _first(step: Step) -> str:
    return next(name for name in step.outputs if name)


def _with_rows(value: Value, batch: int, rows: int) -> Value:
    if value.shape[:1] != (batch,):
        raise NotBatchwise
    meta = torch.empty((rows, *value.shape[1:]), dtype=value.meta.dtype, device="meta")
    return dataclasses.replace(value, meta=meta)
