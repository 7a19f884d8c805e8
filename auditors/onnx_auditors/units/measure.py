"""The auditor without the service: units of a network on inputs in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from onnx_audit import v1
from onnx_auditors import configs
from onnx_auditors.auditor import SaveArtefact
from onnx_auditors.errors import ProbesDoNotFit
from onnx_auditors.network import Network
from onnx_auditors.units import passes, section
from onnx_auditors.units.embedding import GIVEN
from onnx_auditors.units.setup import set_up
from onnx_auditors.units.source import Embedding, Indices, Single, Source

Array = npt.ArrayLike | Tensor
_IMAGE_RANK = 3
_MOST_CHANNELS = 4


def measure(
    network: Network,
    inputs: Array,
    values: Sequence[str] = (),
    labels: Array | None = None,
    concepts: Array | None = None,
    embedding: Array | None = None,
    directions: int = 1024,
    rotations: int = 99,
    seed: int = 0,
    *,
    top: int = 0,
    masks: Array | None = None,
    given: Mapping[str, Array] | None = None,
    bases: Sequence[v1.UnitBasis.ValueType] = (),
    untrained_twin: bool = False,
    max_layers: int = 0,
    save: SaveArtefact | None = None,
) -> v1.UnitsSection:
    """Measures whether units are more meaningful than random directions.

    Args:
        network: The network; it needs no classes.
        inputs: Probes in model-input space, [n, *sample shape].
        values: Values to look at; none means the layers, at most `max_layers` of them.
        labels: Int [n], for LABEL, and for CONCEPT where no concepts are given.
        concepts: Whether a probe shows a concept, 0 or 1, [n, c].
        embedding: Reference embedding for COHERENCE, [n, e], such as a value of another network.
        directions: Number of random directions.
        rotations: Number of rotated bases.
        seed: Seed of every draw.
        top: Top inputs that speak for a direction; 0 takes a hundredth of the probes, at least 9.
        masks: Where a probe shows a concept, 0 or 1, [n, c, height, width] in the input's pixels.
        given: Directions over units by value, [m, units], such as a dictionary of a sparse
            autoencoder.
        bases: Further directions; none means PCA and ICA.
        untrained_twin: Whether to measure the same graph with fresh weights too.
        max_layers: Most layers where no values are named; 0 means 12.
        save: Keeps the pictures; without it none are made.

    Raises:
        InvalidConfig: A value that does not exist, is constant or not of a floating type, or a
            number out of range.
        ProbesDoNotFit: Too few probes, labels of one class, or arrays of the wrong shape.
        ModelFailed: The network's values are not finite.
    """
    config = v1.UnitsConfig(
        values=values,
        directions=directions,
        rotations=rotations,
        top=top,
        max_layers=max_layers,
        bases=bases,
        untrained_twin=untrained_twin,
    )
    configs.check(config)
    source = source_of(
        network,
        inputs,
        seed=seed,
        labels=labels,
        concepts=concepts,
        masks=masks,
        embedding=embedding,
        given=given,
    )
    setup = set_up(config, source)
    partials = [passes.run(setup, *shard, lambda _: None) for shard in setup.cut(1)]
    return section.merge(setup, partials, save)


def source_of(
    network: Network,
    inputs: Array,
    *,
    seed: int,
    labels: Array | None = None,
    concepts: Array | None = None,
    masks: Array | None = None,
    embedding: Array | None = None,
    given: Mapping[str, Array] | None = None,
) -> Source:
    """Returns probes in memory as units see them; arguments as in `measure`.

    Raises:
        ProbesDoNotFit: Arrays of the wrong shape or type, or with NaN or infinite values.
    """
    probes = _single(inputs, "inputs")
    if probes.ndim < 2:  # noqa: PLR2004 - probes and at least one axis of theirs
        raise ProbesDoNotFit(
            f"inputs have the shape {list(probes.shape)}; expected [n, ...] with a probe per row"
        )
    if not np.isfinite(probes).all():
        raise ProbesDoNotFit("inputs hold NaN or infinite values")

    def feed(rows: Indices) -> Tensor:
        return torch.from_numpy(probes[rows]).to(network.device)

    shape = probes.shape[1:]
    return Source(
        network=network,
        feed=feed,
        images=lambda rows: probes[rows],
        channels_last=len(shape) == _IMAGE_RANK and shape[2] <= _MOST_CHANNELS < shape[0],
        limits=(float(probes.min()), float(probes.max())),
        count=len(probes),
        seed=seed,
        labels=_integers(labels, len(probes)),
        concepts=_truth(concepts, "concepts", (len(probes), "c")),
        masks=_truth(masks, "masks", (len(probes), "c", "height", "width")),
        embedding=None if embedding is None else _embedding(embedding, len(probes)),
        given={name: _single(m, f"directions for '{name}'") for name, m in (given or {}).items()},
    )


def _array(given: Array) -> npt.NDArray[np.generic]:
    return given.detach().cpu().numpy() if isinstance(given, Tensor) else np.asarray(given)


def _single(given: Array, name: str) -> Single:
    array = _array(given)
    if array.dtype.kind not in "fiub":
        raise ProbesDoNotFit(f"{name} are of {array.dtype.name}; expected numbers")
    return np.ascontiguousarray(array, dtype=np.float32)


def _embedding(given: Array, count: int) -> Embedding:
    features = _single(given, "embedding")
    _check_shape(features, "embedding", (count, "e"))
    if not np.isfinite(features).all():
        raise ProbesDoNotFit("the reference embedding holds NaN or infinite values")
    return Embedding(GIVEN, lambda rows: features[rows])


def _check_shape(
    array: npt.NDArray[np.generic], name: str, expected: tuple[int | str, ...]
) -> None:
    if array.ndim != len(expected) or len(array) != expected[0]:
        axes = ", ".join(map(str, expected))
        raise ProbesDoNotFit(
            f"{name} has the shape {list(array.shape)}; expected [{axes}], a row per probe"
        )


def _integers(given: Array | None, count: int) -> Indices | None:
    if given is None:
        return None
    array = _array(given)
    _check_shape(array, "labels", (count,))
    if array.dtype.kind not in "iu":
        raise ProbesDoNotFit(f"labels are of {array.dtype.name}; expected integers")
    return array.astype(np.int64)


def _truth(
    given: Array | None, name: str, expected: tuple[int | str, ...]
) -> npt.NDArray[np.bool_] | None:
    if given is None:
        return None
    array = _array(given)
    _check_shape(array, name, expected)
    if not np.isin(array, (0, 1)).all():
        raise ProbesDoNotFit(f"{name} hold other values than 0 and 1")
    return array.astype(bool)
