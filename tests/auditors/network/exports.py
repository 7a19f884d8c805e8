"""Exports modules of the zoo in the ways that people do, and converts what comes out."""

from __future__ import annotations

import tempfile
import warnings
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnxruntime import quantization
from onnxruntime.transformers.float16 import convert_float_to_float16
from tests.auditors.network import zoo
from torch import nn


def export(
    module: nn.Module, shape: zoo.Shape, *, dynamo: bool, fixed: int = 0, opset: int | None = None
) -> bytes:
    """Returns the ONNX file of a module; `fixed` is its batch, 0 for an open one."""
    x = torch.rand(fixed or 2, *shape)
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        # The exporters' own warnings say nothing about the network.
        warnings.simplefilter("ignore")
        path = Path(folder) / "m.onnx"
        if dynamo:
            shapes = None if fixed else ({0: torch.export.Dim("batch")},)
            torch.onnx.export(
                module, (x,), path, dynamo=True, dynamic_shapes=shapes, verbose=False,
                external_data=False, opset_version=opset,
            )  # fmt: skip
            return path.read_bytes()
        axes = None if fixed else {"x": {0: "n"}, "y": {0: "n"}}
        torch.onnx.export(
            module, (x,), path, dynamo=False, input_names=["x"], output_names=["y"],
            dynamic_axes=axes, opset_version=opset or 17,
        )  # fmt: skip
        return path.read_bytes()


@lru_cache(maxsize=64)
def exported(name: str, *, dynamo: bool, fixed: int = 0, opset: int | None = None) -> bytes:
    """Returns the ONNX file of a module of the zoo."""
    return export(zoo.make(name), zoo.ZOO[name][1], dynamo=dynamo, fixed=fixed, opset=opset)


def half(content: bytes) -> bytes:
    """Returns the model with weights and values in half precision."""
    proto: onnx.ModelProto = convert_float_to_float16(onnx.load_from_string(content))
    return proto.SerializeToString()


class _Reader(quantization.CalibrationDataReader):  # type: ignore[misc] # untyped library
    def __init__(self, name: str, inputs: npt.NDArray[np.float32]) -> None:
        self._feeds = iter([{name: inputs[i : i + 1]} for i in range(len(inputs))])

    def get_next(self) -> dict[str, npt.NDArray[np.float32]] | None:
        return next(self._feeds, None)


def quantize(
    content: bytes,
    inputs: npt.NDArray[np.float32],
    form: str,
    *,
    per_channel: bool = False,
    types: tuple[str, str] = ("QUInt8", "QInt8"),
    reduce_range: bool = False,
) -> bytes:
    """Returns the model in 8 bits.

    Args:
        content: The model.
        inputs: Batch that the ranges are taken from.
        form: QDQ or QOperator.
        per_channel: Whether every output channel has its own scale.
        types: Of activations and of weights.
        reduce_range: Whether weights get 7 bits.
    """
    proto = onnx.load_from_string(content)
    activation, weight = (quantization.QuantType[t] for t in types)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "q.onnx"
        source = Path(folder) / "m.onnx"
        onnx.save(proto, source)
        quantization.quantize_static(
            source, path, _Reader(proto.graph.input[0].name, inputs),
            quant_format=quantization.QuantFormat[form], per_channel=per_channel,
            activation_type=activation, weight_type=weight, reduce_range=reduce_range,
        )  # fmt: skip
        return path.read_bytes()
