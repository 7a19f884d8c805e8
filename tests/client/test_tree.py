"""Trees of groups as they are drawn."""

from __future__ import annotations

from onnx_audit import v1
from onnx_audit.cli.tree import drawn


def merges(*joins: tuple[int, int, float]) -> list[v1.TransferMerge]:
    """Returns merges from their groups and distances."""
    return [v1.TransferMerge(left=a, right=b, distance=d) for a, b, d in joins]


def test_a_tree_by_hand() -> None:
    """Columns are distances over the largest, and a group goes on in the line of its first model.

    Models 3 and 0 join at a quarter of the way, 1 and 4 at half, these four at three quarters.
    """
    joins = merges((3, 0, 0.25), (1, 4, 0.5), (5, 6, 0.75), (7, 2, 1.0))
    assert drawn([3, 0, 4, 1, 2], joins, 9) == [
        "──┬───┬─┬",
        "──┘   │ │",
        "────┬─┘ │",
        "────┘   │",
        "────────┘",
    ]


def test_joins_at_one_distance() -> None:
    """Twins at no distance share a column, as do groups that join where another does."""
    assert drawn([0, 1, 2], merges((0, 1, 0.0), (3, 2, 0.0)), 4) == ["┬   ", "┤   ", "┘   "]
    joins = merges((0, 1, 0.5), (2, 3, 0.5), (4, 5, 0.5))
    assert drawn([0, 1, 2, 3], joins, 3) == ["──┬", "──┤", "──┤", "──┘"]
    assert drawn([0], [], 3) == ["   "]
