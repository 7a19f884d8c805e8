"""A bound on one operator: both ends, what proves the upper one, and what attains the lower."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

Proof = Literal["deterministic", "probability"]
Norm = Literal["l1", "l2", "linf"]


@dataclass(frozen=True, eq=False)
class Bound:
    """Two numbers between which an operator norm lies.

    Attributes:
        lower: Attained by `witness`, rounded down.
        upper: No input is amplified more, rounded up.
        proof: "deterministic", or "probability" where `upper` holds with probability 1 - `delta`
            over the random starts drawn from `entropy`.
        method: What gave the upper end.
        norm: "l1", "l2" or "linf", of input and output alike.
        delta: Probability that `upper` does not hold; 0 where it is proved.
        entropy: Seed of the random starts, where there were any.
        witness: Input whose amplification is `lower`, [*input_shape]; None for the zero map.
        tried: Upper end by every method that ran.
        seconds: Time that both ends took.
    """

    lower: float
    upper: float
    proof: Proof
    method: str
    norm: Norm = "l2"
    delta: float = 0.0
    entropy: int | None = None
    witness: Tensor | None = None
    tried: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def gap(self) -> float:
        """`upper` / `lower` - 1; 0 for the zero map."""
        return (
            self.upper / self.lower - 1 if self.lower > 0 else float(self.upper > 0) * float("inf")
        )
