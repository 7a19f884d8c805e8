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
        width, count = self.keys.shape[1], values.shape[1]
        least = self._least[rows]
        if count >= width and bool(torch.isinf(least).any()):
            least = torch.maximum(least, _bar(values, width))
        # Few of the probes matter: only those are packed and sorted.
        row, column = _places(values >= least)
        number = torch.bincount(row, minlength=len(values))
        most = int(number.max())
        if not most:
            return
        place = torch.arange(len(row), device=row.device) - (number.cumsum(0) - number)[row]
        fresh = torch.full((len(values), most), _NONE, device=values.device)
        fresh[row, place] = pack(values[row, column], column + first_rank)
        self.keys[rows] = largest(torch.cat([self.keys[rows], fresh], 1), width)
        lowest = self.keys[rows].amin(1, keepdim=True)
        self._least[rows] = torch.where(lowest == _NONE, -torch.inf, unpack(lowest)[0])


def _bar(values: Tensor, width: int) -> Tensor:
    """Returns the value of that place in each row, counted from the largest, [rows, 1]."""
    if values.device.type == "cpu":
        place = values.shape[1] - width
        return torch.from_numpy(np.partition(values.numpy(), place, 1)[:, place : place + 1])
    return values.topk(width, dim=1, sorted=False).values.amin(1, keepdim=True)


def _places(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Returns rows and columns of true entries, in row-major order."""
    if chosen.device.type == "cpu":
        flat = torch.from_numpy(np.flatnonzero(chosen.numpy()))
    else:
        flat = chosen.reshape(-1).nonzero()[:, 0]
    return flat // chosen.shape[1], flat % chosen.shape[1]


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
