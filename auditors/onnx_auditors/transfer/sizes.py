"""Changes brought to a size while the input stays in the box."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


def scaled(
    inputs: Floats, change: npt.NDArray[np.floating], size: Doubles, box: tuple[Floats, Floats]
) -> Floats:
    """Returns inputs moved along a change until the change has a size, cut off at the box.

    The factor a with |clip(x + a r) - x| = size is found exactly: entries that reach the box stay
    there, and the others share what is left of the size; this is repeated until no further entry
    reaches it. The factor only grows on the way, so it ends.

    Args:
        inputs: Inside the box, [n, ...].
        change: Directions r of any length, [n, ...].
        size: Wanted Euclidean lengths, [n].
        box: Lower and upper end; broadcast to an input.

    Returns:
        Float32 [n, ...]. Where the box holds no such length along r, all entries that change are at
        its ends; where r is zero, the input itself.
    """
    shape = inputs.shape
    x = inputs.reshape(len(inputs), -1).astype(np.float64)
    r = np.asarray(change, dtype=np.float64).reshape(len(x), -1)
    lower, upper = (
        np.broadcast_to(end, shape[1:]).reshape(1, -1).astype(np.float64) for end in box
    )
    room = np.where(r > 0, upper - x, np.where(r < 0, x - lower, 0.0))
    length = np.abs(r)
    factor = np.zeros(len(x))
    held = np.zeros(r.shape, dtype=bool)
    rows = np.flatnonzero(length.any(axis=1) & (size > 0))
    while len(rows):
        free = np.where(held[rows], 0.0, length[rows])
        left = size[rows] ** 2 - (np.where(held[rows], room[rows], 0.0) ** 2).sum(axis=1)
        weight = (free**2).sum(axis=1)
        movable = weight > 0
        grown = np.sqrt(np.maximum(left, 0.0) / np.where(movable, weight, 1.0))
        factor[rows] = np.where(movable, np.maximum(factor[rows], grown), factor[rows])
        reached = factor[rows, None] * length[rows] >= room[rows]
        more = (reached & ~held[rows] & (length[rows] > 0)).any(axis=1) & movable
        held[rows] |= reached
        rows = rows[more]
    moved = x + np.sign(r) * np.minimum(factor[:, None] * length, room)
    inside: Floats = np.clip(moved.astype(np.float32), lower, upper).astype(np.float32)
    return inside.reshape(shape)


def lengths(inputs: Floats, moved: Floats) -> Doubles:
    """Returns the Euclidean lengths of changes of float32 rows, computed in float64, [n]."""
    change = moved.astype(np.float64) - inputs.astype(np.float64)
    found: Doubles = np.sqrt((change.reshape(len(change), -1) ** 2).sum(axis=1))
    return found
