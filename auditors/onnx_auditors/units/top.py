"""The k probes with the largest values for many directions at once, merged exactly.

A value and the rank of its probe are packed into one integer, so that sorting integers sorts by
value and then by rank: the order is total, and the best k are the same however the probes were cut.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_LOW = 0xFFFFFFFF
_MAGNITUDE = 0x7FFFFFFF
_NONE = torch.iinfo(torch.int64).min
"""Key of no probe; below every other."""


class Top:
    """The best probes of each direction so far.

    Attributes:
        keys: Int64 [directions, width], in no order; `_NONE` where there are fewer probes.
    """

    def __init__(self, directions: int, width: int, device: torch.device) -> None:
        self.keys = torch.full((directions, width), _NONE, dtype=torch.int64, device=device)
        self._least = torch.full((directions, 1), -torch.inf, device=device)

    def add(self, begin: int, values: Tensor, first_rank: int) -> None:
        """Takes values of consecutive probes.

        Args:
            begin: First of the directions that the values belong to.
            values: Float32 [directions, probes], finite.
            first_rank: Rank of the first probe.
        """
        rows = slice(begin, begin + len(values))
        width = self.keys.shape[1]
        reach = values >= self._least[rows]
        most = int(reach.sum(1).max())
        if not most:
            return
        if most < values.shape[1] // 4:
            # Late in the pass few probes still matter: only those are packed and sorted.
            picked = torch.where(reach, values, -torch.inf).topk(most, dim=1)
            fresh = pack(picked.values, picked.indices + first_rank)
            fresh[picked.values == -torch.inf] = _NONE
            # topk may take any of equal values; all of those that reach the bar are in it.
        else:
            ranks = torch.arange(first_rank, first_rank + values.shape[1], device=values.device)
            fresh = pack(values, ranks)
        joined = torch.cat([self.keys[rows], fresh], 1)
        self.keys[rows] = largest(joined, width)
        least = self.keys[rows].amin(1, keepdim=True)
        self._least[rows] = torch.where(least == _NONE, -torch.inf, unpack(least)[0])


def largest(keys: Tensor, width: int) -> Tensor:
    """Returns the largest `width` keys of each row, in no order."""
    if keys.shape[1] <= width:
        return keys
    if keys.device.type == "cpu":
        return torch.from_numpy(np.partition(keys.numpy(), keys.shape[1] - width, 1)[:, -width:])
    return keys.topk(width, dim=1, sorted=False).values


def pack(values: Tensor, ranks: Tensor) -> Tensor:
    """Returns int64 keys that sort by value, and among equal values by falling rank.

    The bits of a float32 sort like an integer once those of negative numbers are turned over.

    Args:
        values: Float32.
        ranks: Int64, 0 to 2^32 - 1, broadcasts to the values.
    """
    # Adding zero turns -0 into 0, which is equal to it.
    bits = (values + 0.0).view(torch.int32)
    ordered = bits ^ ((bits >> 31) & _MAGNITUDE)
    return (ordered.long() << 32) | (_LOW - ranks)


def unpack(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the values (float32) and ranks (int64) of keys."""
    ordered = (keys >> 32).to(torch.int32)
    bits = ordered ^ ((ordered >> 31) & _MAGNITUDE)
    return bits.view(torch.float32), _LOW - (keys & _LOW)


def joined(parts: list[npt.NDArray[np.int64]], width: int) -> npt.NDArray[np.int64]:
    """Returns the best ranks of each direction from several parts, best first, [directions, width].

    Args:
        parts: Keys of the same directions over different probes, [directions, any].
        width: Probes to keep.
    """
    keys = np.concatenate(parts, axis=1)
    keys = np.sort(keys, axis=1)[:, ::-1][:, :width]
    if keys.shape[1] and (keys[:, -1] == _NONE).any():
        raise ValueError("there are fewer probes than a direction should have top inputs")
    return unpack(torch.from_numpy(keys.copy()))[1].numpy()
