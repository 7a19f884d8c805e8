"""What units are measured on: a network, its probes in a seeded order, what is known of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt
from torch import Tensor

from onnx_auditors.errors import ProbesDoNotFit
from onnx_auditors.network import Network
from onnx_auditors.units.thinning import near_duplicates

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
Single = npt.NDArray[np.float32]

EIGHTHS = 8
"""Parts of the probes of which the jackknife leaves out one at a time."""
_ORDER_SEED = 21
_IMAGE_RANK, _SMALLEST_SIDE = 3, 8
_SMOOTH = 0.3


@dataclass(frozen=True, eq=False)
class Embedding:
    """A reference embedding that the user gives.

    Attributes:
        source: Where it comes from, for the report.
        features: From indices of probes to features, float32 [m, any].
    """

    source: str
    features: Callable[[Indices], Single]


@dataclass(frozen=True, eq=False)
class Source:
    """A network with n probes.

    Attributes:
        network: The network.
        feed: From indices of probes to a batch in model-input space, on the network's device.
        images: From indices to probes in probe space, float32 [m, ...].
        channels_last: Whether a probe with three axes has its channels last.
        limits: Smallest and largest value of probe space, to draw probes with.
        count: n.
        seed: Seed of every draw.
        labels: int64 [n]; None where there are none.
        concepts: Whether a probe shows a concept, bool [n, c]; None where the labels stand in.
        masks: Where it shows them, bool [n, c, height, width]; None where that is not known.
        embedding: The user's reference embedding; None for the built-in one.
        given: The user's directions by value, float32 [m, units].
    """

    network: Network
    feed: Callable[[Indices], Tensor]
    images: Callable[[Indices], Single]
    channels_last: bool
    limits: tuple[float, float]
    count: int
    seed: int
    labels: Indices | None = None
    concepts: Bools | None = None
    masks: Bools | None = None
    embedding: Embedding | None = None
    given: Mapping[str, Single] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.masks is None:
            return
        shape = self.image_shape
        if shape is None:
            raise ProbesDoNotFit("masks are given, and the probes are no images", field="masks")
        sides = self.as_images(self.images(np.arange(1))).shape[2:]
        if self.masks.shape[2:] != sides:
            raise ProbesDoNotFit(
                f"masks are {self.masks.shape[2]} x {self.masks.shape[3]} pixels, and the probes "
                f"{sides[0]} x {sides[1]}; expected a value for each pixel",
                field="masks",
            )

    @cached_property
    def image_shape(self) -> tuple[int, ...] | None:
        """Shape of a probe as an image, of two or three axes; None where it is none.

        A flat probe counts as a square grey image where neighbours in both directions are alike.
        """
        probes = self.images(np.arange(min(self.count, 256)))
        shape = probes.shape[1:]
        long = tuple(size for size in shape if size > 1)
        if len(long) == _IMAGE_RANK - 1 and min(long) >= _SMALLEST_SIDE:
            return long
        if len(shape) == _IMAGE_RANK:
            spatial = shape[:2] if self.channels_last else shape[1:]
            return shape if min(spatial) >= _SMALLEST_SIDE else None
        side = math.isqrt(math.prod(shape))
        if len(long) != 1 or side**2 != long[0] or side < _SMALLEST_SIDE:
            return None
        square = probes.reshape(-1, side, side).astype(np.float64)
        square = square - square.mean(0)
        alike = [
            float((a * b).mean() / max(math.sqrt((a * a).mean() * (b * b).mean()), 1e-30))
            for a, b in ((square[:, 1:], square[:, :-1]), (square[:, :, 1:], square[:, :, :-1]))
        ]
        return (side, side) if min(alike) > _SMOOTH else None

    def as_images(self, probes: Single) -> Single:
        """Returns probes [n, ...] as [n, channels, height, width]; for those that are images."""
        shape = self.image_shape
        if shape is None:
            raise ValueError("the probes are no images")
        images = probes.reshape(len(probes), *shape)
        if len(shape) < _IMAGE_RANK:
            images = images[:, None]
        elif self.channels_last:
            images = np.moveaxis(images, 3, 1)
        return np.ascontiguousarray(images)


@dataclass(frozen=True, eq=False)
class Order:
    """The probes that are looked at, in the order that breaks ties.

    A label-sorted probe set with ties would otherwise show top inputs of one label by chance.

    Attributes:
        probes: Their indices, int64 [m]; the rank of a probe is its position here.
        near_duplicates: Probes left out because another is almost the same.
    """

    probes: Indices
    near_duplicates: int

    @property
    def eighth(self) -> Indices:
        """The part of the jackknife that each rank belongs to, [m]."""
        return np.arange(len(self.probes)) % EIGHTHS


def order_of(source: Source, max_probes: int) -> Order:
    """Draws the order.

    Args:
        source: The probes.
        max_probes: At most so many; 0 takes all.
    """
    rng = np.random.default_rng([source.seed, _ORDER_SEED])
    rows = rng.permutation(source.count)
    if max_probes:
        rows = rows[:max_probes]
    keep = ~near_duplicates(source.images, np.sort(rows), source.seed)
    kept = np.sort(rows)[keep]
    return Order(rows[np.isin(rows, kept)], int((~keep).sum()))
