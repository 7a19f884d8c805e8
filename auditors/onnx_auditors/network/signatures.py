"""The shapes and dtypes in which a graph's inputs are computed with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx
import torch
from torch import Tensor

from onnx_audit import v1
from onnx_auditors.errors import InvalidModel, UnsupportedOperator
from onnx_auditors.network.engine import Signature
from onnx_auditors.network.node import Refused, to_dtype


class Inputs:
    """The inputs of a graph.

    Args:
        infos: The inputs as declared.
        floating: Dtype in which half and single precision are computed.
        sample_shape: Shape of one sample, where the file leaves it open.
    """

    def __init__(
        self,
        infos: Sequence[v1.TensorInfo],
        floating: torch.dtype,
        sample_shape: Sequence[int] | None,
    ) -> None:
        self._infos = list(infos)
        self._floating = floating
        self._sample_shape = sample_shape

    @property
    def known(self) -> bool:
        """Whether all shapes are known but for the batch."""
        return all(size > 0 for info in self._infos for size in self._shape(info, 1))

    def declared_batch(self) -> int | None:
        """Returns the batch that the file fixes; None where it is open."""
        sizes = {info.shape[0] for info in self._infos if info.shape}
        return max(sizes) if sizes and min(sizes) > 0 else None

    def signature(self, given: Mapping[str, Tensor], batch: int | None) -> Signature:
        """Returns the signature of tensors by name, at the fixed batch if there is one.

        Raises:
            InvalidModel: An input is missing.
            UnsupportedOperator: An input of an element type that is not covered.
        """
        signature = []
        for info in self._infos:
            if info.name not in given:
                raise InvalidModel(f"input '{info.name}' is missing")
            x = given[info.name]
            shape = tuple(x.shape) if batch is None else (batch, *x.shape[1:])
            signature.append((info.name, shape, self._dtype(info, x.dtype)))
        return tuple(signature)

    def signature_at(self, batch: int) -> Signature:
        """Returns the signature of a batch as declared.

        Raises:
            InvalidModel: The file leaves shapes open.
            UnsupportedOperator: An input of an element type that is not covered.
        """
        signature = []
        for info in self._infos:
            shape = self._shape(info, batch)
            if any(size < 0 for size in shape):
                raise InvalidModel(
                    f"input '{info.name}' has the open shape {list(info.shape)}: load the model "
                    "with a sample shape"
                )
            signature.append((info.name, shape, self._dtype(info)))
        return tuple(signature)

    def exact_signature(self, given: Mapping[str, Tensor]) -> Signature:
        """Returns the signature of tensors by name, in their order and as they are."""
        infos = {info.name: info for info in self._infos}
        return tuple(
            (name, tuple(x.shape), self._dtype(infos[name], x.dtype)) for name, x in given.items()
        )

    def are_as_declared(self, given: Mapping[str, Tensor], batch: int | None) -> bool:
        """Says whether tensors have the shapes that the graph computes with, batch and all."""
        for info in self._infos:
            if not info.shape or info.name not in given:
                continue
            declared = (batch or info.shape[0], *info.shape[1:])
            if len(given) > 1:
                declared = tuple(info.shape)
            shape = tuple(given[info.name].shape)
            if not all(size in {-1, n} for size, n in zip(declared, shape, strict=False)):
                return False
        return True

    def _shape(self, info: v1.TensorInfo, batch: int) -> tuple[int, ...]:
        declared = tuple(info.shape)
        sample = declared[1:] if self._sample_shape is None else tuple(self._sample_shape)
        first = declared[:1] if declared[:1] > (0,) else (batch,)
        return (*first, *sample) if declared else ()

    def _dtype(self, info: v1.TensorInfo, given: torch.dtype | None = None) -> torch.dtype:
        """Returns the dtype in which an input is computed with.

        Floats given for integers stay floats: they are leaves of gradients.
        """
        element_type = onnx.TensorProto.DataType.Value(info.dtype.upper())
        try:
            declared = to_dtype(element_type, self._floating)
        except Refused as reason:
            raise UnsupportedOperator(f"input '{info.name}': {reason}") from reason
        if given is None or declared.is_floating_point or not given.is_floating_point:
            return declared
        return self._floating
