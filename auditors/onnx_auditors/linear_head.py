"""Makes a classifier of a model without classes, by a linear head on the labelled probes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from onnx_audit import v1
from onnx_auditors import estimates
from onnx_auditors.errors import InvalidModel, ProbesDoNotFit
from onnx_auditors.input_map import InputMap
from onnx_auditors.network import Head, Network, Session, find_value, fit_head, with_head
from onnx_auditors.network.outputs import FLOATS
from onnx_auditors.network.session import with_outputs
from onnx_auditors.probes import Probes

DEFAULT_L2 = 1e-3
_LARGEST_TABLE = 2**24
"""Entries of the table of features; every process of an audit fits the head, in seconds."""
_BLOCK = 1024
_FOLDS = 5
_LEAST_PROBES = 2

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


def attach(
    network: Network,
    config: v1.LinearHeadConfig,
    input_map: InputMap,
    probes: Probes,
    seed: int,
    *,
    device: str,
    threads: int,
    classes: int | None = None,
) -> tuple[Network, Session, v1.LinearHead]:
    """Fits a head on ONNX Runtime's values at the labelled probes.

    Where the table of features would be too large, probes are drawn with the seed.

    Args:
        network: The model's network.
        config: What is asked for.
        input_map: From probe space to the model's input.
        probes: The probe set.
        seed: The audit's seed.
        device: Where ONNX Runtime runs.
        threads: Threads on the CPU.
        classes: Number of classes; the largest label and 1 if None.

    Returns:
        The network with the head, ONNX Runtime on the file as uploaded with its value read through
        the head, and what the report says of it.

    Raises:
        ProbesDoNotFit: No labels, or of a single class.
        InvalidModel: There is no such value, or it is not of a floating type with a row for each
            input.
        ModelFailed: ONNX Runtime reports an error.
    """
    if probes.labels is None:
        raise ProbesDoNotFit(
            "a linear head is fitted on labels, and the probe set has none; add them as 'labels'",
            field="linear_head",
        )
    method = config.method or v1.HEAD_METHOD_RIDGE
    l2 = config.l2 or DEFAULT_L2
    first = _fed(input_map, probes, np.arange(min(_LEAST_PROBES, len(probes.inputs))))
    value = find_value(network, torch.from_numpy(first).to(network.device), config.value)
    content = with_outputs(network.original, [value])
    session = Session(content, device, threads, output=value)
    if session.dtype not in FLOATS:
        raise InvalidModel(
            f"value '{value}' is of {session.dtype}; a linear head needs one of a floating type",
            field="linear_head.value",
        )
    rows = _draw(len(probes.inputs), session.table(first[:1]).shape[1], seed)
    features = np.concatenate(
        [session.table(_fed(input_map, probes, rows[i : i + _BLOCK]))
         for i in range(0, len(rows), _BLOCK)]
    )  # fmt: skip
    labels = np.asarray(probes.labels[rows]).astype(np.int64)
    count = classes or int(probes.labels.max()) + 1

    def fit(chosen: npt.NDArray[np.bool_]) -> Head:
        return fit_head(
            value, features[chosen], labels[chosen], count, method=method, l2=l2, seed=seed
        )

    head = fit(np.ones(len(rows), bool))
    right = int((head(features).argmax(1) == labels).sum())
    record = v1.LinearHead(
        config=v1.LinearHeadConfig(value=value, method=method, l2=l2),
        features=features.shape[1],
        classes=len(head.bias),
        probe_count=len(rows),
        training_accuracy=estimates.proportion(right, len(rows)),
        held_out_accuracy=_held_out(fit, features, labels, seed),
        sha256=head.sha256,
    )
    headed = with_head(network, head, torch.from_numpy(first))
    return headed, session.with_head(head), record


def _fed(input_map: InputMap, probes: Probes, rows: npt.NDArray[np.int64]) -> Floats:
    """Returns probes by index as the model is fed."""
    x = torch.from_numpy(input_map.to_probe_space(probes.inputs[rows]))
    with torch.no_grad():
        fed: Floats = input_map(x.to(input_map.lower.device)).cpu().numpy()
    return fed


def _draw(count: int, features: int, seed: int) -> npt.NDArray[np.int64]:
    """Returns the probes that the head is fitted on, in order."""
    most = max(_LEAST_PROBES, _LARGEST_TABLE // features)
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, most, replace=False))


def _held_out(fit: Callable[..., Head], features: Floats, labels: Labels, seed: int) -> v1.Estimate:
    """Returns the share of probes that heads get right which were fitted on the other folds.

    A fold on whose rest there is one class left is answered with that class.
    """
    fold = np.random.default_rng(seed).permutation(len(labels)) % _FOLDS
    right = 0
    for number in range(min(_FOLDS, len(labels))):
        rest = fold != number
        if len(np.unique(labels[rest])) > 1:
            answers = fit(rest)(features[~rest]).argmax(1)
        else:
            answers = np.full(int((~rest).sum()), labels[rest][0])
        right += int((answers == labels[~rest]).sum())
    return estimates.proportion(right, len(labels))
