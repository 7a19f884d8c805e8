"""From an ONNX file to its network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx
import torch

from onnx_auditors.errors import UnsupportedOperator
from onnx_auditors.network.limits import Limits
from onnx_auditors.network.network import Network
from onnx_auditors.network.preparing import prepare
from onnx_auditors.network.reading import read, standard_opset

_NEWEST_OPSET = 28
"""Newest opset whose operators are known here; what can be audited is ONNX Runtime's to say."""


def load(
    source: str | Path | bytes | onnx.ModelProto,
    device: str | torch.device = "cpu",
    limits: Limits | None = None,
    *,
    floating: torch.dtype = torch.float32,
    sample_shape: Sequence[int] | None = None,
    output: str | None = None,
) -> Network:
    """Forms the network of a model.

    Args:
        source: A path, the bytes of a file without external data, or a parsed model.
        device: Where it computes.
        limits: What the model may cost.
        floating: Dtype in which half and single precision are computed.
        sample_shape: Shape of one sample without the batch axis, for models that leave it open.
        output: Name of the output with the class scores, for models where that is not plain.

    Raises:
        UnsupportedOperator: Nodes that cannot be made differentiable; lists them all.
        InvalidModel: Not a readable ONNX file, or one that breaks ONNX's rules; or no output of
            the given name.
        LimitExceeded: Larger than the limits allow.
    """
    limits = limits or Limits()
    file = read(source, limits)
    opset = standard_opset(file.proto)
    if opset > _NEWEST_OPSET:
        raise UnsupportedOperator(
            f"opset {opset} is newer than {_NEWEST_OPSET}; export the model with an older opset"
        )
    prepared = prepare(file.proto, limits)
    return Network(
        file,
        prepared,
        torch.device(device),
        limits,
        floating=floating,
        sample_shape=sample_shape,
        output=output,
    )
