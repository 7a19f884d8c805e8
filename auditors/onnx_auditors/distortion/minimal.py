"""Minimal adversarial distortion: the question, and the methods that answer it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from onnx_auditors.distortion import starts
from onnx_auditors.distortion.lbfgs import lbfgs
from onnx_auditors.distortion.norms import NORMS
from onnx_auditors.distortion.penalised import penalised
from onnx_auditors.distortion.projected import projected
from onnx_auditors.distortion.search import Logits, Search

LEAST_BUDGET = 2
"""One look at the input and one gradient."""
FIRST_LOOK = 0.5
METHODS: dict[str, Callable[[Search, Tensor, Tensor, float], None]] = {
    "projected": projected,
    "lbfgs": lbfgs,
    "penalised": penalised,
}
"""The methods: each searches on for some rows and rivals until the budget's number is spent."""
L2_METHODS = ("lbfgs", "penalised")
"""The methods that know L2 alone."""


@dataclass(frozen=True)
class Result:
    """Examples and their sizes.

    Attributes:
        examples: Float32 [n, ...]; the input itself where there is no example.
        distance: Float64 [n], in the norm, in probe space; inf where none was found, 0 where the
            input itself is adversarial.
        evaluations: Int64 [n], (forward + backward rows) / 2 spent, rounded up.
    """

    examples: Tensor
    distance: Tensor
    evaluations: Tensor


def minimal(
    network: Logits,
    inputs: Tensor,
    labels: Tensor,
    norm: str = "l2",
    budget: int = 500,
    box: tuple[float | Tensor, float | Tensor] = (0.0, 1.0),
    targets: Tensor | None = None,
    seed: int | Sequence[int] = 0,
    methods: Sequence[str] | None = None,
    *,
    anchors: tuple[Tensor, Tensor] | None = None,
    progress: Callable[[float], object] = lambda _: None,
) -> Result:
    """Finds small changes of inputs that change the network's answer.

    Args:
        network: From probe space [n, ...] to logits [n, classes >= 2], differentiable.
        inputs: Float32 [n, ...] inside the box.
        labels: Int64 [n], the classes that count as right.
        norm: "l2", "linf", "l1" or "l0".
        budget: Gradient evaluations per input, (forward + backward rows) / 2, at least 2.
        box: Lower and upper end, numbers or tensors that broadcast to an input.
        targets: Int64 [n], the classes that the answer has to become; any but the label if None.
        seed: Seed of the noise; or one for each input, which then do not depend on each other.
        methods: Names from `METHODS`, which share the budget evenly and pass on what they leave;
            "projected" if None. "lbfgs" (the paper's) and "penalised" know L2 alone.
        anchors: Points of the box [m, ...] and the network's answers to them, int64 [m], as
            further starts where the budget is 60 or more; none if not given.
        progress: Told from time to time which share of the budget is spent.

    Returns:
        The examples; each is inside the box and adversarial for the network.

    Raises:
        ValueError: A norm or a method that is not offered, a method that does not know the norm, a
            budget below 2, a target equal to the label.
    """
    _check(norm, budget, labels, targets, methods)
    lower, upper = (torch.as_tensor(end, dtype=inputs.dtype, device=inputs.device) for end in box)
    seeds = [seed + i for i in range(len(inputs))] if isinstance(seed, int) else list(seed)
    search = Search(
        network,
        inputs,
        labels,
        (lower, upper),
        norm=NORMS[norm],
        seeds=torch.tensor(seeds, dtype=torch.int64, device=inputs.device),
        targets=targets,
        anchors=anchors,
        tell=lambda spent: progress(spent / budget),
    )
    everything = torch.arange(len(inputs), device=inputs.device)
    clean = search.scores(search.origin, everything)
    open_rows = search.excess(clean, everything) >= 0
    search.distance[~open_rows] = 0.0
    rows = everything[open_rows]
    if len(rows):
        # Fewer entries do not lie on the line to the probe.
        last = 0.0 if search.norm.sparse else starts.CROSSING / 2
        rivals = starts.ranking(search, rows, clean[rows])
        available = max(budget - last, LEAST_BUDGET) - FIRST_LOOK
        names = methods or ("projected",)
        for count, name in enumerate(names, 1):
            METHODS[name](search, rows, rivals, FIRST_LOOK + available * count / len(names))
        if not search.norm.sparse:
            passes = min(starts.CROSSING, int(2 * search.left(rows, budget)))
            starts.to_boundary(search, rows, passes)
    return Result(
        search.best.reshape(-1, *search.shape), search.exact(), search.spent.ceil().long()
    )


def _check(
    norm: str,
    budget: int,
    labels: Tensor,
    targets: Tensor | None,
    methods: Sequence[str] | None,
) -> None:
    if norm not in NORMS:
        raise ValueError(f"norm is {norm!r}; available: {', '.join(map(repr, NORMS))}")
    if budget < LEAST_BUDGET:
        raise ValueError(f"budget is {budget}; at least {LEAST_BUDGET} evaluations are needed")
    for method in methods or ():
        if method not in METHODS:
            raise ValueError(f"method is {method!r}; available: {', '.join(map(repr, METHODS))}")
        if method in L2_METHODS and norm != "l2":
            raise ValueError(f"method {method!r} knows the norm 'l2' alone, not {norm!r}")
    if targets is not None and bool((targets == labels).any()):
        row = int((targets == labels).nonzero()[0])
        raise ValueError(f"target {int(targets[row])} of input {row} is its label")
