"""Compares the network with ONNX Runtime before any figure is taken from it.

What may differ is measured, not guessed: ONNX Runtime computes the same inputs with its graph
rewritten and as it stands, and the network may be a small multiple of that difference away, beside
what float32 itself loses. All values of the graph are compared, at batch 1 and at more. Where
something differs too much, each node is fed ONNX Runtime's own values, so that the one at fault can
be told from those behind it; where values are rounded to 8 or 16 bits, none may be at fault.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch

from onnx_audit import v1
from onnx_auditors.errors import AuditError, ParityFailed
from onnx_auditors.network.network import Network
from onnx_auditors.network.outputs import Column, two_classes
from onnx_auditors.network.plan import Plan, Step
from onnx_auditors.network.saturation import products, unsigned
from onnx_auditors.network.session import Session, debug_model, saturates, with_outputs

_TINY = float(np.finfo(np.float32).tiny)
SINGLE = 2e-5
"""Relative difference that sums in another order explain in float32: 340 roundings."""
HALF = 2.0**-10
"""The same where values are stored in half precision: two roundings."""
FACTOR = 4.0
"""How many of ONNX Runtime's own differences the network may be away."""
_CANCELLATION = 1e-3
"""Share of its inputs' size below which a value is what is left of a difference."""
_ROWS = 4
_QUANTISED_BYTES = 2
"""Integers of that many bytes at most are taken for quantised values."""


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
        _require_unsaturated(_relative(reference, answers(optimized=True)))
    as_it_stands = answers(optimized=False)
    inside = [
        _Inside.compare(network, exact, session.threads, inputs[:rows])
        for rows in sorted({1, min(_ROWS, len(inputs))})
    ]
    own = _relative(as_it_stands, reference)
    allowed = _floor(network) + max(FACTOR * own, *(look.step for look in inside))
    if session.head is not None:
        # A head may lean on small differences between features, so that their roundings grow.
        allowed *= max(1.0, session.head.spread(session.with_head(None).table(inputs)))
    result = compare(
        _scores(network, inputs, reference.shape[1]), reference, allowed, session.column
    )
    divergent = next((look.divergent for look in inside if look.divergent), "")
    # Roundings to few bits add up, and a tie may go the other way: what follows is further away
    # without a node at fault. There the nodes decide, on ONNX Runtime's own values.
    rounds = network.half_precision or all(look.step > 0 for look in inside)
    if divergent or rounds or not result.passed:
        judged = [_judge_nodes(network, look) for look in inside]
        faulty = next((name for name, _ in judged if name), "")
        excused = rounds and all(complete for _, complete in judged)
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
    relative = _relative(found, reference)
    labels = [two_classes(table, column).argmax(1) for table in (found, reference)]
    return v1.Parity(
        probe_count=len(reference),
        max_absolute_difference=float(np.abs(_difference(found, reference)).max()),
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


@dataclass(frozen=True)
class _Inside:
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
    ) -> _Inside:
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
    allowed, largest_step = _floor(network), 0.0
    readers = {name: node for node in network.nodes for name in node.output}
    computed = _computed(network)
    for name, expected in reference.items():
        if not isinstance(expected, np.ndarray) or not np.issubdtype(expected.dtype, np.number):
            continue
        node = readers[name]
        stored = reference.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        step = _step(expected, stored) if name in computed else 0.0
        largest_step = max(largest_step, step)
        sources = [reference[n] for n in node.input if n in reference]
        size = max(_size(expected), _CANCELLATION * max(map(_size, sources), default=0.0))
        own = float(np.abs(_difference(again[name], expected)).max(initial=0.0)) / size
        allowed = max(allowed, _floor(network) + max(FACTOR * own, step))
        if found[name].shape != expected.shape:
            return name, largest_step
        away = np.abs(_difference(found[name], expected)).max(initial=0.0) / size
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


def _judge_nodes(network: Network, look: _Inside) -> tuple[str, bool]:
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
        sizes = [_size(a.cpu().numpy()) for a in arguments if a is not None]
        size = max(_size(expected), _CANCELLATION * max(sizes, default=0.0))
        away = first.cpu().numpy()
        allowed = _floor(network) + _step(expected)
        if away.shape != expected.shape:
            return name, complete
        if np.abs(_difference(away, expected)).max(initial=0.0) / size > allowed:
            return name, complete
    return "", complete


def _arguments(
    network: Network, plan: Plan, step: Step, look: _Inside
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


def _floor(network: Network) -> float:
    return HALF if network.half_precision else SINGLE


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


def _step(x: npt.NDArray[Any], stored: npt.NDArray[Any] | None = None) -> float:
    """Returns what one quantisation step of a value is of its largest entry; 0 if it has none.

    Args:
        x: The value.
        stored: The integers that it was made of, if it was made by DequantizeLinear.
    """
    if stored is not None and stored.size and stored.min() < stored.max():
        width = float(stored.max()) - float(stored.min())
        return (float(x.max()) - float(x.min())) / width / _size(x)
    small = x.dtype.itemsize <= _QUANTISED_BYTES and np.issubdtype(x.dtype, np.integer)
    return 1.0 / _size(x) if small and np.any(x) else 0.0


def _size(x: npt.NDArray[Any]) -> float:
    """Returns the largest finite entry, or the smallest normal number of the type if that is more.

    Below it numbers are equally far apart, so that no share of them can be asked for.
    """
    finite = np.abs(x[np.isfinite(x)].astype(np.float64)) if x.dtype.kind in "fiu" else x[:0]
    normal = float(np.finfo(x.dtype).tiny) if x.dtype.kind == "f" else _TINY
    return max(float(finite.max(initial=0.0)), normal, _TINY)


def _relative(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> float:
    """Returns the largest difference over the largest entry of b."""
    return float(np.abs(_difference(a, b)).max(initial=0.0)) / max(float(np.abs(b).max()), _TINY)


def _difference(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Returns a - b; infinite where only one of them is not a number, 0 where both agree."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore"):
        difference = np.where(same, 0.0, a - b)
    return np.where(np.isnan(difference), np.inf, difference)
