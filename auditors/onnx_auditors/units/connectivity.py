"""How densely layers are wired, on weights times the standard deviation of what they carry.

Raw weights change when units are rescaled, which changes no function; weighted ones do not.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from onnx_audit import v1
from onnx_auditors.network import Layer
from onnx_auditors.units import calibration
from onnx_auditors.units.setup import Prepared, Setup
from onnx_auditors.units.source import Floats
from onnx_auditors.units.values import WEIGHTED, layers_of

BELOW = 0.05
"""Fraction of a row's largest weight below which a weight counts as absent."""
_MEASURES = ("gini", "hoyer", "fan_in_fraction", "below_eps")
_SAMPLE = 512
_NULL_ROWS, _NULL_VALUES = 2048, 2**23
_SEED = 81
_PASSED = frozenset(
    {"BatchNormalization", "Add", "Sub", "Mul", "Div", "Identity", "Cast", "Dropout"}
)
_SHAPING = frozenset({"Flatten", "Reshape", "Squeeze", "Unsqueeze", "Identity", "Cast", "Dropout"})
_CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})
_MATRIX = 2


def describe(setup: Setup, prepared: Prepared, message: v1.UnitsLayer) -> None:
    """Adds the wiring of the linear layers that make and read a value, where there are any."""
    job = prepared.job
    layers = layers_of(job.network)
    making = _making(layers, job.value.measured)
    if making is not None and (found := _wiring(setup, making)) is not None:
        message.connectivity.CopyFrom(found)
    reading = _reading(layers, job.value.rectified or job.value.measured)
    if reading is not None and (found := _wiring(setup, reading)) is not None:
        message.reading.CopyFrom(found)


def measures(rows: Floats) -> Floats:
    """Returns four measures of each row of weights, [m, 4].

    Gini and Hoyer's measure as in Hurley & Rickard 2009, "Comparing measures of sparsity", table I;
    the participation ratio (sum w^2)^2 / sum w^4 over the fan-in; and the share of weights below a
    twentieth of the row's largest. Rows of zeros are left out.

    Args:
        rows: Weights, float64 [any, n], n at least 2.
    """
    size = np.abs(rows)
    size = size[size.max(1) > 0]
    count = size.shape[1]
    ordered = np.sort(size, 1)
    total = ordered.sum(1)
    places = np.arange(1, count + 1)
    gini = 1 - 2 * (ordered * (count - places + 0.5)).sum(1) / (total * count)
    power = (size**2).sum(1)
    hoyer = (math.sqrt(count) - total / np.sqrt(power)) / (math.sqrt(count) - 1)
    ratio = power**2 / (size**4).sum(1) / count
    below = (size < BELOW * size.max(1, keepdims=True)).mean(1)
    return np.stack([gini, hoyer, ratio, below], 1)


def connectivity(rows: Floats, value: str, seed: int) -> v1.Connectivity:
    """Returns the measures of a weight matrix with their nulls.

    Args:
        rows: Weights times the standard deviation of what they carry, float64 [m, n].
        value: Name of the linear layer's output.
        seed: Seed of the nulls.
    """
    count = rows.shape[1]
    found = measures(rows)
    result = v1.Connectivity(value=value, rows=len(rows), fan_in=count)
    draws = max(64, min(_NULL_ROWS, _NULL_VALUES // count))
    rng = np.random.default_rng([seed, _SEED, count])
    gaussian = measures(rng.standard_normal((draws, count)))
    uniform = measures(rng.uniform(-1, 1, (draws, count)))
    for i, name in enumerate(_MEASURES):
        expected = gaussian[:, i].mean()
        spread = gaussian[:, i].std(ddof=1) * math.sqrt(1 / max(1, len(found)) + 1 / draws)
        mean = found[:, i].mean() if len(found) else math.nan
        getattr(result, name).CopyFrom(
            v1.ConnectivityMeasure(
                value=mean,
                z=(mean - expected) / max(spread, 1e-300),
                gaussian=expected,
                uniform=uniform[:, i].mean(),
            )
        )
    return result


def _making(layers: list[Layer], name: str) -> Layer | None:
    """Returns the linear layer that a value comes from, through affine operators."""
    made = {output: layer for layer in layers for output in layer.outputs}
    layer = made.get(name)
    while layer is not None and not _weights(layer):
        through = layer.op_type in _PASSED and len(layer.inputs) == 1
        layer = made.get(layer.inputs[0]) if through else None
    return layer


def _reading(layers: list[Layer], name: str) -> Layer | None:
    """Returns the first linear layer that reads a value, through changes of shape."""
    names = {name}
    for layer in layers:
        if names.isdisjoint(layer.inputs):
            continue
        if _weights(layer):
            return layer
        if layer.op_type in _SHAPING:
            names.update(layer.outputs)
    return None


def _weights(layer: Layer) -> bool:
    """Says whether it is linear with a stored matrix or kernel, and reads one value."""
    kernels = [w for w in layer.weights.values() if w.ndim >= _MATRIX]
    return layer.op_type in WEIGHTED and bool(kernels) and len(layer.inputs) == 1


def _wiring(setup: Setup, layer: Layer) -> v1.Connectivity | None:
    """Returns the wiring of a layer; None where it reads a single value."""
    rows = _matrix(layer)
    carried = _spread(setup, layer)
    if rows.shape[1] % len(carried) or rows.shape[1] < 2:  # noqa: PLR2004 - a row of weights
        return None
    # A kernel's taps follow each other within a channel.
    weighted = rows * np.repeat(carried, rows.shape[1] // len(carried))
    return connectivity(weighted, layer.output, setup.source.seed)


def _matrix(layer: Layer) -> Floats:
    """Returns the weights as rows, one per unit that the layer makes, float64 [m, fan-in]."""
    place, weight = next((i, w) for i, w in layer.weights.items() if w.ndim >= _MATRIX)
    weight = weight.detach().cpu().double()
    if layer.op_type == "Conv":
        return weight.flatten(1).numpy()
    if layer.op_type == "ConvTranspose":
        return weight.transpose(0, 1).flatten(1).numpy()
    if layer.op_type == "Gemm":
        turned = layer.attributes.get("transB" if place == 1 else "transA", 0)
        columns_first = bool(turned) if place == 1 else not turned
        return (weight if columns_first else weight.T).numpy()
    # x W has a column per unit, W x a row.
    return _flat(weight).T.numpy() if place == 1 else _flat(weight).numpy()


def _flat(weight: Tensor) -> Tensor:
    return weight.reshape(-1, *weight.shape[-2:])[0]


def _spread(setup: Setup, layer: Layer) -> Floats:
    """Returns the standard deviation of what each weight of a row carries, [channels or fan-in]."""
    ranks = np.arange(min(_SAMPLE, len(setup.order.probes)))
    name = layer.inputs[0]
    parts = [
        found[name]
        for found in calibration.steps(
            setup.source, setup.source.network, [name], ranks, setup.order, setup.step
        )
    ]
    carried = torch.cat(parts).double()
    if layer.op_type in _CONVOLUTIONS:
        per = carried.transpose(0, 1).flatten(1)
    elif 0 in layer.weights and layer.op_type == "MatMul":
        per = carried.movedim(-2, 0).flatten(1)
    else:
        per = carried.movedim(-1, 0).flatten(1)
    return per.std(1, correction=0).cpu().numpy()
