"""Puts linear heads on values of networks that have no classes of their own.

An autoencoder or an embedding becomes auditable when a linear layer is fitted on one of its values,
as Szegedy et al. 2013 do with their autoencoders. The network gets the layer as further nodes of
its graph; ONNX Runtime reads the value from the file as uploaded, and the layer is applied to that
in float64.
"""

from __future__ import annotations

import difflib
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from onnx_auditors.errors import InvalidModel
from onnx_auditors.network.head import Head
from onnx_auditors.network.loading import load
from onnx_auditors.network.lowering import needed
from onnx_auditors.network.network import Network
from onnx_auditors.network.plan import Plan

OUTPUT = "linear_head"
"""Name of the class scores among the network's values."""
_LEAST_FEATURES = 2
_LISTED = 8


def find_value(network: Network, x: Tensor, name: str = "") -> str:
    """Returns the name of the value that a head is fitted on.

    Without a name it is the value that the network's answer is made of where that is a vector for
    each sample, as of an embedding; else the value with the fewest entries that everything goes
    through, the last of equals, as the code of an autoencoder.

    Args:
        network: The network.
        x: Batch in model-input space, at least one row.
        name: Name that the user gives; empty to choose.

    Raises:
        InvalidModel: The file has no such value, or none that could be chosen.
        UnsupportedOperator: None is named, and the model's shapes depend on its input's content.
    """
    kept = set(network.value_names())
    # Values inside functions of the model have no name in the file.
    names = [n for node in network.original.graph.node for n in node.output if n in kept]
    if name:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=3) or names[-_LISTED:]
            raise InvalidModel(
                f"the model has no value '{name}'; near are {', '.join(near)}",
                field="linear_head.value",
            )
        return name
    if network.logits in names and network.scores_in_a_row:
        return network.logits
    plan, rows = network.plan(x), network.batch or len(x)
    sizes = {
        value: plan.values[value].meta.numel() // rows
        for value in _bottlenecks(plan, network.input.name, network.logits)
        if value in names and plan.values[value].meta.is_floating_point()
    }
    fit = [value for value, size in sizes.items() if size >= _LEAST_FEATURES]
    if not fit:
        raise InvalidModel(
            "the model has no value that everything goes through, on which a linear head could be "
            f"fitted; name one of its values, such as {', '.join(names[-_LISTED:])}",
            field="linear_head.value",
        )
    return min(reversed(fit), key=sizes.__getitem__)


def _bottlenecks(plan: Plan, source: str, target: str) -> list[str]:
    """Returns the values that every path from source to target goes through, in order.

    They are those that are alone in being still needed at some point of the plan's order.
    """
    if target not in plan.values:
        return []
    steps = needed(plan, (source,), (target,))
    last = {name: i for i, step in enumerate(steps) for name in step.inputs} | {target: len(steps)}
    alive, found = {source}, []
    for i, step in enumerate(steps):
        alive = {name for name in alive if last[name] > i}
        alive |= {name for name in step.outputs if name and last.get(name, -1) > i}
        if len(alive) == 1:
            found += [name for name in alive if name not in found]
    return found


def with_head(network: Network, head: Head, x: Tensor) -> Network:
    """Returns the network with a head in the place of its answer.

    Args:
        network: The network.
        head: The head.
        x: Batch in model-input space, for the shape of a sample.

    Returns:
        A network whose `output` is the head's class scores [n, classes]; its `original` is the
        model with the head as further nodes.
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(network.original)
    graph = proto.graph
    # The reshape names the batch where that is fixed, which is then rewritten with the others.
    shape = np.array([network.batch or 0, head.weight.shape[0]], np.int64)
    constants: dict[str, npt.NDArray[Any]]
    constants = {"weight": head.weight, "bias": head.bias, "shape": shape}
    graph.initializer.extend(
        numpy_helper.from_array(constant, f"{OUTPUT}/{name}")
        for name, constant in constants.items()
    )
    single, flat = f"{OUTPUT}/single", f"{OUTPUT}/flat"
    graph.node.extend([
        helper.make_node("Cast", [head.value], [single], name=single, to=TensorProto.FLOAT),
        helper.make_node("Reshape", [single, f"{OUTPUT}/shape"], [flat], name=flat),
        helper.make_node("Gemm", [flat, f"{OUTPUT}/weight", f"{OUTPUT}/bias"], [OUTPUT],
                         name=OUTPUT),
    ])  # fmt: skip
    del graph.output[:]
    graph.output.append(
        helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["n", len(head.bias)])
    )
    opened = any(size < 1 for size in network.input.shape[1:])
    sample = list(x.shape[1:]) if opened else None
    return load(proto, network.device, output=OUTPUT, sample_shape=sample)
