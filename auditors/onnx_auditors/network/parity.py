"""Compares the network with ONNX Runtime before any figure is taken from it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from onnx_audit import v1
from onnx_auditors.errors import ParityFailed
from onnx_auditors.network.network import Network
from onnx_auditors.network.session import Session, debug_model

_TINY = float(np.finfo(np.float32).tiny)
_SINGLE_TOLERANCE = 1e-4
"""About 1,700 times float32's unit roundoff: long sums in another order stay well below."""


def tolerance(network: Network) -> float:
    """Returns the relative difference of outputs that rounding alone explains.

    Half precision rounds every value by up to 2^-11 of its size, which the network, computing in
    float32, does not. Independent roundings of n nodes in a row add up to about sqrt(n) of them;
    four times that is allowed.
    """
    if not network.half_precision:
        return _SINGLE_TOLERANCE
    return 4 * math.sqrt(network.summary.node_count) * 2.0**-11


def parity(network: Network, session: Session, inputs: npt.NDArray[np.float32]) -> v1.Parity:
    """Compares the outputs of the network and of ONNX Runtime.

    Args:
        network: The network.
        session: ONNX Runtime on the file.
        inputs: Batch in model-input space, float32 [n, *sample shape].

    Returns:
        The comparison; where it fails it names the first value in topological order that differs.

    Raises:
        ModelFailed: ONNX Runtime reports an error.
    """
    reference = session.run(inputs)
    with torch.no_grad():
        given = {network.input.name: torch.from_numpy(inputs).to(network.device)}
        ours = network.evaluate(given)[network.output]
    found = ours.reshape(len(inputs), -1).float().cpu().numpy()
    result = compare(found, reference, tolerance(network))
    if not result.passed:
        row = int(np.abs(_difference(found, reference)).max(axis=1).argmax())
        result.first_divergent_value = _first_divergent(network, session, inputs[row : row + 1])
    return result


def compare(
    found: npt.NDArray[np.float32], reference: npt.NDArray[np.float32], allowed: float
) -> v1.Parity:
    """Compares two tables of class scores, [n, classes] each."""
    if found.shape != reference.shape:
        return v1.Parity(
            probe_count=len(reference),
            tolerance=allowed,
            max_absolute_difference=math.inf,
            max_relative_difference=math.inf,
        )
    largest = float(np.abs(_difference(found, reference)).max())
    relative = largest / max(float(np.abs(reference).max()), _TINY)
    return v1.Parity(
        probe_count=len(reference),
        max_absolute_difference=largest,
        max_relative_difference=relative,
        tolerance=allowed,
        label_agreement=int((found.argmax(1) == reference.argmax(1)).sum()),
        passed=relative <= allowed,
    )


def require(result: v1.Parity) -> None:
    """Stops where the parity does not hold.

    Raises:
        ParityFailed: It does not.
    """
    if not result.passed:
        raise ParityFailed(
            f"the network's outputs differ from ONNX Runtime's by "
            f"{result.max_relative_difference:.2g} of the largest output, {result.tolerance:.2g} "
            f"is allowed; the first value that differs is '{result.first_divergent_value}'. Please "
            "report it with the model: figures taken from this network would not be the model's",
            first_divergent_value=result.first_divergent_value,
        )


def _difference(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Returns a - b; infinite where only one of them is not a number, 0 where both agree."""
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore"):
        difference = np.where(same, 0.0, np.subtract(a, b, dtype=np.float64))
    return np.where(np.isnan(difference), np.inf, difference)


def _first_divergent(network: Network, session: Session, sample: npt.NDArray[np.float32]) -> str:
    """Returns the first value that differs beyond the tolerance; empty if none does alone."""
    content, names = debug_model(network.original)
    debug = Session(content, threads=session.threads)
    batch = network.input.shape[0] if network.input.shape[0] > 0 else 1
    x = np.repeat(sample, batch, axis=0)
    known = set(network.value_names())
    shared = [name for name in names if name in known]
    reference = debug.values(x, shared)
    with torch.no_grad():
        ours = network.values(torch.from_numpy(x).to(network.device), shared)
    allowed = tolerance(network)
    for name, expected in zip(shared, reference, strict=True):
        value = ours[name].cpu().numpy()
        if value.shape != expected.shape:
            return name
        size = float(np.abs(expected.astype(np.float64)).max(initial=0.0))
        if np.abs(_difference(value, expected)).max(initial=0.0) > allowed * max(size, 1e-30):
            return name
    return ""
