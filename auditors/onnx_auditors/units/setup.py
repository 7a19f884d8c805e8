"""What every shard and the merge agree on: the probes' order, the layers, and how work is cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from onnx_audit import v1
from onnx_auditors.errors import InvalidConfig, ProbesDoNotFit
from onnx_auditors.network import Network
from onnx_auditors.units import calibration, directions, twin, values
from onnx_auditors.units.calibration import Scale
from onnx_auditors.units.directions import Directions, Family
from onnx_auditors.units.embedding import Reference
from onnx_auditors.units.lists import width_for
from onnx_auditors.units.source import Order, Single, Source, order_of
from onnx_auditors.units.values import Value

LEAST_TOP = 9
_TOP_SHARE = 100
_CURVE = (3, 9, 32, 120)
_STRIP_SHARE, _WIDEST_STRIP = 20, 512
_MOST_ROWS, _MOST_MAP_ROWS = 256, 64
_BLOCK_BYTES = 2**28
_LARGEST_BLOCK, _SMALLEST_BLOCK = 4096, 16
_SHARDS = 8
_KEPT_VALUES = 2**24
"""Samples of all layers that have no more values are kept for the process's next shard."""


@dataclass(frozen=True, eq=False)
class Job:
    """One layer of one network.

    Attributes:
        number: Its number among all jobs.
        network: The network, or its untrained twin.
        value: The value.
        untrained: Whether it is the twin.
    """

    number: int
    network: Network
    value: Value
    untrained: bool


@dataclass(frozen=True, eq=False)
class Prepared:
    """A job with what its sample says.

    Attributes:
        job: The job.
        scale: Scale and live units.
        after: The same after the rectifier; None without one.
        directions: The directions.
        sample: The standardised sample, [m, p, live units].
    """

    job: Job
    scale: Scale
    after: Scale | None
    directions: Directions
    sample: Tensor


@dataclass(frozen=True, eq=False)
class Setup:
    """What every shard and the merge agree on.

    Attributes:
        config: The configuration with its defaults filled in.
        source: Network and probes.
        order: The probes in their order.
        jobs: The layers, then those of the untrained twin.
        left_out: Layers left out because there are too many.
    """

    config: v1.UnitsConfig
    source: Source
    order: Order
    jobs: Sequence[Job]
    left_out: Sequence[str]
    _prepared: dict[int, Prepared] = field(default_factory=dict)

    @property
    def top(self) -> int:
        """Top inputs that speak for a direction."""
        return self.config.top

    @property
    def curve(self) -> list[int]:
        """Numbers of top inputs over which the index is drawn."""
        most = len(self.order.probes) // 4
        return sorted({k for k in (*_CURVE, self.top) if k <= most or k == self.top})

    @property
    def strip(self) -> int:
        """Length of the longest strip of top inputs: 5 % of the probes, at most 512."""
        return min(len(self.order.probes) // _STRIP_SHARE, _WIDEST_STRIP)

    def width(self, family: int) -> int:
        """Returns how many top inputs are kept for directions of a family."""
        if family in {Family.NATURAL, Family.RANDOM}:
            wanted = max(width_for(self.top, LEAST_TOP), self.strip, *self.curve)
        else:
            wanted = self.top
        return min(wanted, len(self.order.probes))

    @cached_property
    def step(self) -> int:
        """Probes that go through a network at once."""
        return calibration.step_size([job.value for job in self.jobs])

    @cached_property
    def block(self) -> int:
        """Probes of a block, a power of two.

        Products of matrices round alike only for equal blocks, so that blocks depend on the work
        and never on how it is shared out. Their values fit into 256 MiB.
        """
        entries = sum(len(job.value.positions) * job.value.dimension for job in self.jobs)
        wanted = min(_BLOCK_BYTES // (4 * entries), len(self.order.probes) // _SHARDS)
        power = 1 << (max(1, wanted).bit_length() - 1)
        return max(_SMALLEST_BLOCK, min(_LARGEST_BLOCK, power))

    @cached_property
    def reference(self) -> Reference:
        """The reference embedding."""
        return Reference.fit(self.source, self.order.probes, self.step)

    @cached_property
    def seen(self) -> Single:
        """The reference embedding of the largest sample, by rank, float32 [m, e]."""
        size = max(calibration.sample_size(job.value, len(self.order.probes)) for job in self.jobs)
        parts = [
            self.reference(self.order.probes[i : min(i + self.step, size)])
            for i in range(0, size, self.step)
        ]
        return np.concatenate(parts)

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return -(-len(self.order.probes) // self.block)

    def cut(self, shards: int = _SHARDS) -> list[tuple[list[int], range]]:
        """Returns at most so many shards: numbers of jobs, and blocks."""
        # As many as there can be; of ways to have so many, the one that cuts layers least.
        groups = max(
            range(1, min(len(self.jobs), shards) + 1),
            key=lambda groups: (groups * min(self.blocks, shards // groups), -groups),
        )
        ranges = min(self.blocks, shards // groups)
        ends = [round(i * self.blocks / ranges) for i in range(ranges + 1)]
        return [
            (list(range(len(self.jobs)))[group::groups], range(ends[i], ends[i + 1]))
            for group in range(groups)
            for i in range(ranges)
        ]

    def prepare(self, job: Job) -> Prepared:
        """Looks at a layer's sample.

        Raises:
            InvalidConfig: The value is constant, or has fewer than two live units.
            ModelFailed: It is not finite.
        """
        if (kept := self._prepared.get(job.number)) is not None:
            return kept
        source, value = self.source, job.value
        found, active = calibration.sample(
            source, job.network, value, value.measured, self.order, self.step
        )
        scale = calibration.scale_of(value, found, active)
        after = None
        if value.rectified and not job.untrained:
            rectified, _ = calibration.sample(
                source, job.network, value, value.rectified, self.order, self.step
            )
            after = calibration.rescaled(scale, rectified)
        standard = scale.apply(found)
        made = Prepared(job, scale, after, self._directions(job, scale, standard), standard)
        if standard.numel() * len(self.jobs) <= _KEPT_VALUES:
            self._prepared[job.number] = made
        return made

    def families(self, prepared: Prepared) -> list[int]:
        """Returns the families of directions whose top inputs are looked for."""
        if prepared.job.untrained:
            return [Family.NATURAL, Family.RANDOM]
        after = [Family.NATURAL_AFTER, Family.RANDOM_AFTER] if prepared.after is not None else []
        return [
            Family.NATURAL, Family.RANDOM, Family.ROTATED, *after, *prepared.directions.bases
        ]  # fmt: skip

    def _directions(self, job: Job, scale: Scale, standard: Tensor) -> Directions:
        config, value = self.config, job.value
        size = len(scale.live)
        most = _MOST_ROWS if len(value.positions) == 1 else _MOST_MAP_ROWS
        # One position per probe: bases are of units, wherever they are in the map.
        rng = np.random.default_rng([self.source.seed, 51])
        places = torch.from_numpy(rng.integers(standard.shape[1], size=len(standard)))
        rows = torch.arange(len(standard), device=standard.device)
        single = standard[rows, places.to(standard.device)]
        bases = {}
        for kind in [] if job.untrained else config.bases:
            made = directions.basis(kind, single, config.directions, self.source.seed)
            if made is not None:
                bases[Family.BASES + kind] = made
        given = self.source.given.get(value.name)
        if given is not None and not job.untrained:
            bases[Family.BASES + v1.UNIT_BASIS_GIVEN] = _given(given, value, scale)
        return Directions(
            name=value.name,
            seed=self.source.seed,
            size=size,
            random=config.directions,
            rotations=config.rotations,
            rows=min(size, most),
            sign=scale.sign,
            bases=bases,
            device=standard.device,
        )


def _given(
    matrix: np.ndarray[tuple[int, int], np.dtype[np.float32]], value: Value, scale: Scale
) -> Tensor:
    """Returns the user's directions over standardised live units, [m, d]."""
    if matrix.ndim != 2 or matrix.shape[1] != value.dimension or not np.isfinite(matrix).all():  # noqa: PLR2004 - a matrix
        raise ProbesDoNotFit(
            f"directions for '{value.name}' have the shape {list(matrix.shape)}; expected finite "
            f"rows of {value.dimension} units",
            field="given_directions",
        )
    # <x, v> over raw units is <z, divisor v> over standardised ones, up to a constant.
    return torch.from_numpy((matrix[:, scale.live] * scale.divisor).astype(np.float32))


def resolve(config: v1.UnitsConfig, source: Source, count: int) -> v1.UnitsConfig:
    """Returns a copy with every default filled in but the values.

    Args:
        config: The configuration, checked.
        source: Network and probes.
        count: Probes that are looked at.

    Raises:
        ProbesDoNotFit: There are too few probes, or their labels are all of one class.
    """
    top = config.top or max(LEAST_TOP, count // _TOP_SHARE)
    if count < 2 * top:
        raise ProbesDoNotFit(
            f"{count} probes, of which the top {top} should speak for a direction; at least "
            f"{2 * top} are needed"
        )
    if source.labels is not None and len(np.unique(source.labels)) < 2:  # noqa: PLR2004 - a class and another
        raise ProbesDoNotFit(
            f"all probes have the label {int(source.labels[0])}: at least two classes are needed; "
            "leave the labels out for the scores that need none"
        )
    resolved = v1.UnitsConfig()
    resolved.CopyFrom(config)
    resolved.directions = config.directions or 1024
    resolved.rotations = config.rotations or 99
    resolved.top = top
    resolved.max_layers = config.max_layers or 12
    resolved.bases[:] = list(config.bases) or [v1.UNIT_BASIS_PCA, v1.UNIT_BASIS_ICA]
    return resolved


def set_up(config: v1.UnitsConfig, source: Source) -> Setup:
    """Agrees on everything.

    Raises:
        AuditError: The configuration does not fit the network or the probes.
    """
    order = order_of(source, config.max_probes)
    resolved = resolve(config, source, len(order.probes))
    network = source.network
    names, left_out = list(resolved.values), list[str]()
    if not names:
        names, left_out = values.choose(network, resolved.max_layers)
    unknown = sorted(set(source.given) - set(names))
    if unknown:
        raise InvalidConfig(
            f"directions are given for '{unknown[0]}', which is not looked at; values looked at: "
            f"{', '.join(names)}",
            field="given_directions",
        )
    sample = source.feed(order.probes[:2])
    described = values.describe(network, names, sample)
    jobs = [Job(i, network, value, untrained=False) for i, value in enumerate(described)]
    if resolved.untrained_twin:
        fresh = twin.untrained(network, source.seed, tuple(sample.shape[1:]))
        jobs += [Job(len(jobs) + i, fresh, v, untrained=True) for i, v in enumerate(described)]
    return Setup(resolved, source, order, jobs, left_out)
