"""How many gradient evaluations attacks have made in this process, for whoever watches its speed.

No figure of a report depends on it.
"""

from __future__ import annotations


class _Count:
    evaluations = 0.0


def add(evaluations: float) -> None:
    """Books gradient evaluations, each (forward + backward rows) / 2."""
    _Count.evaluations += evaluations


def evaluations() -> float:
    """Gradient evaluations of this process so far."""
    return _Count.evaluations
