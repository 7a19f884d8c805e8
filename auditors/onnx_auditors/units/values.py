"""Which values of a network are looked at, and how they are cut into units and positions."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from onnx_auditors.errors import InvalidConfig, UnsupportedOperator
from onnx_auditors.network import Layer, Network
from onnx_auditors.units.source import Indices

RECTIFIERS = frozenset(
    {
        "Relu", "LeakyRelu", "PRelu", "Elu", "Selu", "Celu", "ThresholdedRelu", "Gelu", "Softplus",
        "Mish", "HardSwish", "Swish",
    }
)  # fmt: skip
WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_AFFINE = frozenset({"BatchNormalization", "Add", "Sub", "Mul", "Div"})
_SPATIAL = frozenset(
    {
        "Conv", "ConvTranspose", "BatchNormalization", "InstanceNormalization", "MaxPool",
        "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool", "LRN",
    }
)  # fmt: skip
_FEWEST_UNITS = 8
"""Layers with fewer units are left out where no values are named: nothing could be decided."""
_POSITIONS_PER_AXIS = 8
_NEAR_NAMES = 5


@dataclass(frozen=True, eq=False)
class Value:
    """A value of the network as units.

    Attributes:
        name: Its name as asked for.
        measured: Name of the value that is measured: what goes into the rectifier, if there is one.
        rectified: Name of the rectifier's output; empty if there is none.
        axis: Axis of the units in [n, ...].
        dimension: Number of units.
        grid: Sizes of the other axes; empty for vectors.
        positions: Positions of the grid that are looked at, row-major, [p]; [0] for vectors.
    """

    name: str
    measured: str
    rectified: str
    axis: int
    dimension: int
    grid: tuple[int, ...]
    positions: Indices

    def units(self, tensor: Tensor) -> Tensor:
        """Returns all of a batch of the value as float32 [n, positions of the grid, units]."""
        flat = tensor.movedim(self.axis, -1).reshape(len(tensor), -1, self.dimension)
        return flat.float()

    def looked_at(self, units: Tensor) -> Tensor:
        """Returns the positions that are looked at, [n, p, units]."""
        if len(self.positions) == units.shape[1]:
            return units
        return units[:, torch.from_numpy(self.positions).to(units.device)]


def layers_of(network: Network) -> list[Layer]:
    """Returns the network's layers; none where its shapes depend on its input's content."""
    try:
        return network.layers
    except UnsupportedOperator:
        return []


def choose(network: Network, most: int) -> tuple[list[str], list[str]]:
    """Returns the values to look at where none are named, and those left out.

    They are what goes into rectifiers, and what comes out of linear layers with weights, after
    normalisation; not the class scores, and none with fewer than 8 units.

    Args:
        network: The network.
        most: At most so many, spread over the depth, the last one among them.

    Raises:
        InvalidConfig: There is none.
    """
    layers = layers_of(network)
    readers = {name: [x for x in layers if name in x.inputs] for x in layers for name in x.outputs}
    found: dict[str, None] = {}
    for layer in layers:
        if layer.op_type in RECTIFIERS:
            found[layer.output] = None
        elif layer.op_type in WEIGHTED and layer.weights:
            end = _end_of(layer, readers)
            if not any(reader.op_type in RECTIFIERS for reader in readers[end.output]):
                found[end.output] = None
    made = {layer.output: layer for layer in layers}
    names = [
        name
        for name in found
        if name != network.logits
        and _leads_to_logits_alone(name, network, readers) is False
        and _units_of(made[name], layers) >= _FEWEST_UNITS
    ]
    if not names:
        raise InvalidConfig(
            f"the model has no layer with at least {_FEWEST_UNITS} units before its class scores; "
            f"name the values to look at, such as {', '.join(network.value_names()[:3])}",
            field="values",
        )
    if len(names) <= most:
        return names, []
    chosen = {round(i) for i in np.linspace(0, len(names) - 1, most)} if most > 1 else {-1}
    kept = [name for i, name in enumerate(names) if i in chosen] or names[-1:]
    return kept, [name for name in names if name not in kept]


def describe(network: Network, names: Sequence[str], sample: Tensor) -> list[Value]:
    """Returns how values are cut into units.

    Args:
        network: The network.
        names: Their names.
        sample: A batch in model-input space, of at least one row.

    Raises:
        InvalidConfig: A name that does not exist or comes twice, or a value that is not of a
            floating type or not one row per probe.
    """
    _check_names(network, names)
    layers = layers_of(network)
    made = {name: layer for layer in layers for name in layer.outputs}
    described = []
    for name in names:
        layer = made.get(name)
        rectifier = layer if layer is not None and layer.op_type in RECTIFIERS else None
        if rectifier is None:
            after = [x for x in layers if name in x.inputs and x.op_type in RECTIFIERS]
            rectifier = after[0] if after else None
        measured = rectifier.inputs[0] if rectifier is not None else name
        with torch.no_grad():
            found = network.values(sample, [measured])[measured]
        if not found.is_floating_point():
            raise InvalidConfig(
                f"value '{name}' is {str(found.dtype).removeprefix('torch.')}; units are measured "
                "on values of a floating type",
                field="values",
            )
        if found.ndim < 2 or len(found) != len(sample):  # noqa: PLR2004 - probes and units
            raise InvalidConfig(
                f"value '{name}' has the shape {list(found.shape)} for {len(sample)} probes; "
                "expected a row of units for each",
                field="values",
            )
        axis = _unit_axis(tuple(found.shape), measured, made)
        grid = tuple(s for i, s in enumerate(found.shape) if i not in {0, axis})
        described.append(
            Value(
                name=name,
                measured=measured,
                rectified=rectifier.output if rectifier is not None else "",
                axis=axis,
                dimension=found.shape[axis],
                grid=grid if math.prod(grid) > 1 else (),
                positions=_positions(grid),
            )
        )
    return described


def _check_names(network: Network, names: Sequence[str]) -> None:
    known = [network.input.name, *network.value_names()]
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=_NEAR_NAMES, cutoff=0.3)
            hint = f"near it: {', '.join(near or known[-_NEAR_NAMES:])}"
            raise InvalidConfig(f"the model has no value '{name}'; {hint}", field="values")
        if list(names).count(name) > 1:
            raise InvalidConfig(f"value '{name}' is named twice", field="values")


def _end_of(layer: Layer, readers: dict[str, list[Layer]]) -> Layer:
    """Returns the last of the affine operators with constants that a linear layer alone feeds."""
    while True:
        following = readers.get(layer.output, [])
        if len(following) != 1 or following[0].op_type not in _AFFINE:
            return layer
        if len(following[0].inputs) != 1 or following[0].output not in readers:
            return layer
        layer = following[0]


def _leads_to_logits_alone(name: str, network: Network, readers: dict[str, list[Layer]]) -> bool:
    """Says whether nothing but a change of shape lies between a value and the class scores."""
    while name != network.logits:
        following = readers.get(name, [])
        shaping = {"Identity", "Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Add"}
        if len(following) != 1 or following[0].op_type not in shaping:
            return False
        name = following[0].output
    return True


def _units_of(layer: Layer, layers: Sequence[Layer]) -> int:
    made = {name: x for x in layers for name in x.outputs}
    return layer.output_shape[_unit_axis(layer.output_shape, layer.output, made)]


def _unit_axis(shape: tuple[int, ...], name: str, made: dict[str, Layer]) -> int:
    """Returns the axis of the units: channels of maps, features of sequences and vectors.

    Axes of size 1 are passed over. Of several the second is taken where the value comes from a
    convolution, a pooling or a normalisation of channels, or has four axes; else the last.
    """
    long = [i for i, size in enumerate(shape) if i > 0 and size > 1]
    if len(long) <= 1:
        return long[0] if long else len(shape) - 1
    layer = made.get(name)
    while layer is not None:
        if layer.op_type in _SPATIAL:
            return 1
        if layer.op_type in {"MatMul", "Gemm", "LayerNormalization", "Transpose", "Reshape"}:
            return len(shape) - 1
        layer = made.get(layer.inputs[0]) if layer.inputs else None
    return 1 if len(shape) == 4 else len(shape) - 1  # noqa: PLR2004 - batch, channels, two of space


def _positions(grid: Sequence[int]) -> Indices:
    """Returns an evenly spread, centred part of a grid: at most 8 places along each of two axes."""
    most = _POSITIONS_PER_AXIS if len(grid) > 1 else _POSITIONS_PER_AXIS**2
    picked = [_spread(size, most if size > 1 else 1) for size in grid]
    places = np.zeros(1, dtype=np.int64)
    for size, chosen in zip(grid, picked, strict=True):
        places = (places[:, None] * size + chosen[None, :]).reshape(-1)
    return places


def _spread(size: int, most: int) -> Indices:
    if size <= most:
        return np.arange(size)
    return np.floor((np.arange(most) + 0.5) * size / most).astype(np.int64)
