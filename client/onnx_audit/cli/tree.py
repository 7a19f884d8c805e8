"""Trees of groups, drawn with characters."""

from __future__ import annotations

from collections.abc import Sequence

from onnx_audit import v1


def drawn(order: Sequence[int], merges: Sequence[v1.TransferMerge], width: int) -> list[str]:
    """Returns a line for each model in the order, the tree growing to the right.

    A group goes on in the line of its first model; columns are proportional to the distance at
    which groups join, from 0 at the left to the largest at the right.

    Args:
        order: The models, such that groups are neighbours.
        merges: How they join, nearest first; see `v1.TransferSection`.
        width: Columns.
    """
    largest = max((merge.distance for merge in merges), default=0.0) or 1.0
    lines = [[" "] * width for _ in order]
    # Of each group: its first line, its last line, and the column that it has reached.
    groups = {model: (line, line, 0) for line, model in enumerate(order)}
    for number, merge in enumerate(merges, len(order)):
        upper, lower = sorted((groups[merge.left], groups[merge.right]))
        column = round(merge.distance / largest * (width - 1))
        for line, _, begin in (upper, lower):
            for place in range(begin, column):
                if lines[line][place] == " ":
                    lines[line][place] = "─"
        for line in range(upper[0], lower[0] + 1):
            alone = "┬" if line == upper[0] else "┘" if line == lower[0] else "│"
            # What is there already joins at the same distance.
            joined = "┬" if line == upper[0] else "┤"
            lines[line][column] = alone if lines[line][column] == " " else joined
        groups[number] = (upper[0], lower[1], column)
    return ["".join(line) for line in lines]
