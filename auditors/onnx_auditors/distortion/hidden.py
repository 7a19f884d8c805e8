"""The smallest change of a hidden value that changes the answer.

The same question as for inputs, asked of the part of the network behind one value: distances in
different layers are compared as shares of the value's own norm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from onnx_auditors.distortion.minimal import Result, minimal
from onnx_auditors.distortion.norms import NORMS
from onnx_auditors.network import Layer, Network

SPREAD = 1.0
"""How far the box reaches beyond an entry's values, in standard deviations of all entries."""
_ENDS = {"Relu": (0.0, None), "Sigmoid": (0.0, 1.0), "Softmax": (0.0, 1.0), "Tanh": (-1.0, 1.0)}
"""What an operator's output can be; None where there is no end."""
_MIXING = frozenset({
    "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Flatten", "Reshape",
    "Identity", "Dropout", "Transpose", "Squeeze", "Unsqueeze", "Concat", "Split", "Slice",
})  # fmt: skip
"""Operators whose output stays between the ends of their inputs, padding with zeros included."""


@dataclass(frozen=True)
class Hidden:
    """Changes of a hidden value.

    Attributes:
        value: The value at the inputs, [n, ...].
        result: Changed values, their distances and evaluations.
        relative: Float64 [n], distance over the norm of the value itself; inf where no change was
            found, NaN where value and distance are both 0.
        box: The ends between which changed values were looked for, each [n, ...].
    """

    value: Tensor
    result: Result
    relative: Tensor
    box: tuple[Tensor, Tensor]


def hidden(
    network: Network,
    inputs: Tensor,
    labels: Tensor,
    value: str,
    norm: str = "l2",
    budget: int = 500,
    *,
    box: tuple[Tensor, Tensor] | None = None,
    targets: Tensor | None = None,
    seed: int | Sequence[int] = 0,
    progress: Callable[[float], object] = lambda _: None,
) -> Hidden:
    """Finds small changes of a value of the graph that change the answer.

    A hidden value has no box of its own, so one is put around what it takes: see `value_box`.
    Changes that need more room are not found. The box of a whole probe set is better than that of
    a few inputs, and the same for all of them.

    Args:
        network: The network.
        inputs: Batch in model-input space, [n, *sample shape].
        labels: Int64 [n], the classes that count as right.
        value: Name of the value; every path from the input to the logits must go through it.
        norm: "l2", "linf", "l1" or "l0".
        budget: Gradient evaluations per input.
        box: Lower and upper end that broadcast to the value of one input; `value_box` of these
            inputs if None. It is widened to hold the values themselves.
        targets: Int64 [n], the classes that the answer has to become; any but the label if None.
        seed: Seed of the noise; or one for each input.
        progress: Told from time to time which share of the budget is spent.

    Raises:
        InvalidModel: The graph has no such value, or a path leads around it.
        ValueError: As `minimal` raises it.
    """
    with torch.no_grad():
        at = network.values(inputs, [value])[value]
    lower, upper = value_box(network, value, at) if box is None else box
    box = torch.minimum(lower, at), torch.maximum(upper, at)
    result = minimal(
        lambda h: network.from_value(value, h),
        at,
        labels,
        norm,
        budget,
        box,
        targets,
        seed,
        progress=progress,
    )
    relative = result.distance / NORMS[norm].size(at.flatten(1).double())
    return Hidden(at, result, relative, box)


def value_box(network: Network, value: str, at: Tensor) -> tuple[Tensor, Tensor]:
    """Returns a box around a value: what each entry takes over a batch, and some room beyond.

    The room is `SPREAD` standard deviations over all entries and inputs: the search starts from
    noise in proportion to the box, and the rare large activations would make it far too strong.
    What the operator can put out at all bounds the box too: 0 from below behind a ReLU; 0 and 1
    behind a sigmoid or softmax; -1 and 1 behind tanh.

    Args:
        network: The network.
        value: Name of the value.
        at: What it takes, [n, ...].

    Returns:
        Lower and upper end, each [...].
    """
    room = SPREAD * at.std(correction=0)
    lower, upper = _ends({layer.output: layer for layer in network.layers}, value)
    return _cut(at.amin(0) - room, lower, None), _cut(at.amax(0) + room, None, upper)


def _ends(made_by: dict[str, Layer], value: str) -> tuple[float | None, float | None]:
    """Returns what a value can be, as far as the operators that make it tell; None for no end."""
    layer = made_by.get(value)
    if layer is None:
        return None, None
    if layer.op_type in _ENDS:
        return _ENDS[layer.op_type]
    if layer.op_type not in _MIXING:
        return None, None
    ends = [_ends(made_by, name) for name in layer.inputs]
    lows = [low for low, _ in ends if low is not None]
    highs = [high for _, high in ends if high is not None]
    return (
        min(lows) if len(lows) == len(ends) else None,
        max(highs) if len(highs) == len(ends) else None,
    )


def _cut(x: Tensor, least: float | None, most: float | None) -> Tensor:
    return x if least is None and most is None else x.clamp(least, most)
