"""Compares the network with ONNX Runtime before any figure is taken from it.

What may differ is measured, not guessed: ONNX Runtime computes the same inputs with its graph
rewritten and as it stands, and the network may be a small multiple of that difference away, beside
what float32 itself loses. All values of the graph are compared, at batch 1 and at more. Where
something differs too much, each node is fed ONNX Runtime's own values, so that the one at fault can
be told from those behind it; where values are rounded to 8 or 16 bits, none may be at fault.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch

from onnx_audit import v1
from onnx_auditors.errors import ParityFailed
from onnx_auditors.network.differences import FACTOR, SINGLE, difference, relative_difference
from onnx_auditors.network.inside import Inside, floor_of, judge_nodes
from onnx_auditors.network.network import Network
from onnx_auditors.network.outputs import Column, two_classes
from onnx_auditors.network.saturation import products, unsigned
from onnx_auditors.network.session import Session, saturates, with_outputs

_ROWS = 4


def parity(network: Network, session: Session, inputs: npt.NDArray[np.float32]) -> v1.Parity:
    """Compares the outputs and all values of the network with ONNX Runtime's.

    Args:
        network: The network.
        session: ONNX Runtime on the file, with the provider that the audit uses.
        inputs: Batch in model-input space, float32 [n, *sample shape].

    Returns:
        The comparison of the outputs; it fails for a value inside the graph too. Where it fails it
        names the first value in topological order that differs.

    Raises:
        ModelFailed: ONNX Runtime reports an error.
        ParityFailed: ONNX Runtime saturates 8-bit products of this model on this processor.
    """
    inputs = session.as_fed(inputs)
    reference = session.table(inputs)
    exact = unsigned(network.original) if saturates() else network.original

    def answers(*, optimized: bool) -> npt.NDArray[np.float32]:
        other = Session(
            with_outputs(exact, [session.output]),
            threads=session.threads,
            output=session.output,
            classes=reference.shape[1],
            optimized=optimized,
        )
        return other.with_head(session.head).table(inputs)

    if exact is not network.original:
        _require_unsaturated(relative_difference(reference, answers(optimized=True)))
    as_it_stands = answers(optimized=False)
    inside = [
        Inside.compare(network, exact, session.threads, inputs[:rows])
        for rows in sorted({1, min(_ROWS, len(inputs))})
    ]
    own = relative_difference(as_it_stands, reference)
    allowed = floor_of(network) + max(FACTOR * own, *(look.step for look in inside))
    if session.head is not None:
        # A head may lean on small differences between features, so that their roundings grow.
        allowed *= max(1.0, session.head.spread(session.with_head(None).table(inputs)))
    result = compare(
        _scores(network, inputs, reference.shape[1]), reference, allowed, session.column
    )
    divergent = next((look.divergent for look in inside if look.divergent), "")
    # Roundings to few bits add up, a tie may go the other way, and steep functions make much of the
    # last bits: what follows is further away without a node at fault. There the nodes decide, on
    # ONNX Runtime's own values.
    rounds = network.half_precision or all(look.step > 0 for look in inside)
    if divergent or rounds or not result.passed:
        judged = [judge_nodes(network, look) for look in inside]
        faulty = next((name for name, _ in judged if name), "")
        excused = all(complete for _, complete in judged)
        if faulty or not result.passed or (divergent and not excused):
            result.passed = False
            result.first_divergent_value = faulty or divergent
    if not result.passed and saturates() and any(not p.stored for p in products(exact)):
        _require_unsaturated(result.max_relative_difference)
    return result


def _require_unsaturated(away: float) -> None:
    """Stops where answers are further from those with exact products than float32 explains."""
    if away > SINGLE:
        raise ParityFailed(
            "ONNX Runtime saturates products of unsigned and signed 8-bit numbers on this "
            "processor, which has no VNNI instructions, and cannot be kept from it for this model: "
            f"its outputs are {away:.2g} of the largest output from the exact ones, so that other "
            "machines give other answers. Audit the model on a machine with VNNI, or quantise it "
            "with reduce_range=True, or with weights of the same type as the values",
            first_divergent_value="",
        )


def compare(
    found: npt.NDArray[np.float32],
    reference: npt.NDArray[np.float32],
    allowed: float,
    column: Column | None = None,
) -> v1.Parity:
    """Compares two tables of class scores, [n, classes] each, or [n, 1] read as two classes."""
    if found.shape != reference.shape:
        return v1.Parity(
            probe_count=len(reference),
            tolerance=allowed,
            max_absolute_difference=math.inf,
            max_relative_difference=math.inf,
        )
    relative = relative_difference(found, reference)
    labels = [two_classes(table, column).argmax(1) for table in (found, reference)]
    return v1.Parity(
        probe_count=len(reference),
        max_absolute_difference=float(np.abs(difference(found, reference)).max()),
        max_relative_difference=relative,
        tolerance=allowed,
        label_agreement=int((labels[0] == labels[1]).sum()),
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


def _scores(
    network: Network, inputs: npt.NDArray[np.float32], classes: int
) -> npt.NDArray[np.float32]:
    """Returns the network's output for a batch; 1 for the label and 0 else where it is labels."""
    with torch.no_grad():
        given = {network.input.name: torch.from_numpy(inputs).to(network.device)}
        ours = network.evaluate(given)[network.output].reshape(len(inputs), -1)
    if not ours.is_floating_point():
        ours = torch.nn.functional.one_hot(ours[:, 0].long(), classes)
    return ours.float().cpu().numpy()
