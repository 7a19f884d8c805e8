"""All values inside a graph by ONNX Runtime and by the network, and the node that is at fault."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch

from onnx_auditors.errors import AuditError
from onnx_auditors.network.differences import (
    FACTOR,
    HALF,
    SINGLE,
    difference,
    quantisation_step,
    size_of,
)
from onnx_auditors.network.network import Network
from onnx_auditors.network.plan import Plan, Step
from onnx_auditors.network.session import Session, debug_model

CANCELLATION = 1e-3
"""Share of its inputs' size below which a value is what is left of a difference."""


@dataclass(frozen=True)
class Inside:
    """All values of one batch, by ONNX Runtime and by the network.

    Attributes:
        x: The batch.
        reference: ONNX Runtime's values by name, of the graph as it stands.
        divergent: Name of the first value that differs too much; empty where none does.
        step: Largest share of a computed value's largest entry that a quantisation step is.
    """

    x: npt.NDArray[np.float32]
    reference: dict[str, npt.NDArray[Any]]
    divergent: str
    step: float

    @classmethod
    def compare(
        cls, network: Network, exact: onnx.ModelProto, threads: int, x: npt.NDArray[np.float32]
    ) -> Inside:
        """Computes and compares all values of a batch.

        Args:
            network: The network.
            exact: The model, written so that its products do not saturate on this processor.
            threads: Threads of one operator.
            x: The batch.
        """
        content, names = debug_model(exact)
        if network.batch is not None:
            x = np.repeat(x[:1], network.batch, axis=0)
        shared = sorted(set(names) & set(network.value_names()), key=names.index)
        plain = Session(content, threads=threads, output=network.output, optimized=False)
        other = Session(content, threads=threads, output=network.output)
        expected, again = plain.values(x, shared), other.values(x, shared)
        reference = dict(zip(shared, expected, strict=True))
        with torch.no_grad():
            found = network.values(torch.from_numpy(x).to(network.device), shared)
        divergent, step = _first_beyond(network, reference, dict(zip(shared, again, strict=True)),
                                        {n: v.cpu().numpy() for n, v in found.items()})  # fmt: skip
        return cls(x, reference, divergent, step)


def _first_beyond(
    network: Network,
    reference: Mapping[str, npt.NDArray[Any]],
    again: Mapping[str, npt.NDArray[Any]],
    found: Mapping[str, npt.NDArray[Any]],
) -> tuple[str, float]:
    """Returns the first value beyond the tolerance, and the largest quantisation step.

    What a value may be away never falls along the graph: differences are handed on.
    """
    allowed, largest_step = floor_of(network), 0.0
    readers = {name: node for node in network.nodes for name in node.output}
    computed = _computed(network)
    for name, expected in reference.items():
        if not isinstance(expected, np.ndarray) or not np.issubdtype(expected.dtype, np.number):
            continue
        node = readers[name]
        stored = reference.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        step = quantisation_step(expected, stored) if name in computed else 0.0
        largest_step = max(largest_step, step)
        sources = [reference[n] for n in node.input if n in reference]
        size = max(size_of(expected), CANCELLATION * max(map(size_of, sources), default=0.0))
        own = float(np.abs(difference(again[name], expected)).max(initial=0.0)) / size
        allowed = max(allowed, floor_of(network) + max(FACTOR * own, step))
        if found[name].shape != expected.shape:
            return name, largest_step
        away = np.abs(difference(found[name], expected)).max(initial=0.0) / size
        if away > allowed:
            return name, largest_step
    return "", largest_step


def _computed(network: Network) -> set[str]:
    """Returns the names of the values that follow from the input; the others are parameters.

    Parameters are the same for both, so that their rounding excuses nothing.
    """
    names = {info.name for info in network.summary.inputs}
    for node in network.nodes:
        nested = any(a.HasField("g") or a.graphs for a in node.attribute)
        if nested or not names.isdisjoint(node.input):
            names.update(node.output)
    return names


def judge_nodes(network: Network, look: Inside) -> tuple[str, bool]:
    """Returns the first node that errs on ONNX Runtime's own values, and if all could be judged.

    The node is named by its first output; empty where none errs.
    """
    try:
        plan = network.plan(torch.from_numpy(look.x).to(network.device))
    except AuditError:
        return "", False
    complete = True
    for step in plan.steps:
        name = next(n for n in step.outputs if n)
        expected = look.reference.get(name)
        arguments = _arguments(network, plan, step, look)
        if arguments is None or not isinstance(expected, np.ndarray):
            complete = False
            continue
        with torch.no_grad():
            results = step.function(*arguments)
        first = results[list(step.outputs).index(name)] if step.several else results
        sizes = [size_of(a.cpu().numpy()) for a in arguments if a is not None]
        size = max(size_of(expected), CANCELLATION * max(sizes, default=0.0))
        away = first.cpu().numpy()
        allowed = floor_of(network) + quantisation_step(expected)
        if away.shape != expected.shape:
            return name, complete
        if np.abs(difference(away, expected)).max(initial=0.0) / size > allowed:
            return name, complete
    return "", complete


def _arguments(
    network: Network, plan: Plan, step: Step, look: Inside
) -> Sequence[torch.Tensor | None] | None:
    """Returns the arguments of a step with ONNX Runtime's values; None where it lacks one."""
    arguments: list[torch.Tensor | None] = []
    for name in step.inputs:
        value = plan.values.get(name)
        given = look.x if name == network.input.name else look.reference.get(name)
        if not name:
            arguments.append(None)
        elif value is not None and value.constant is not None:
            arguments.append(value.constant)
        elif value is not None and given is not None:
            arguments.append(torch.from_numpy(given).to(network.device, value.meta.dtype))
        else:
            return None
    return arguments


def floor_of(network: Network) -> float:
    """Returns the relative difference that roundings of the stored type explain."""
    return HALF if network.half_precision else SINGLE
