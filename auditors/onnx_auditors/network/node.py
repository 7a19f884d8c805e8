"""A node as its operator sees it while it is bound: attributes, inputs, constants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import onnx
import onnx.numpy_helper
import torch

_HALF_OR_SINGLE: set[int] = {
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
}
_DTYPES: dict[int, torch.dtype] = {
    onnx.TensorProto.DOUBLE: torch.float64,
    onnx.TensorProto.INT8: torch.int8,
    onnx.TensorProto.INT16: torch.int16,
    onnx.TensorProto.INT32: torch.int32,
    onnx.TensorProto.INT64: torch.int64,
    onnx.TensorProto.UINT8: torch.uint8,
    onnx.TensorProto.BOOL: torch.bool,
}


class Refused(Exception):  # noqa: N818 - control flow inside the package
    """An operator does not cover a node."""


@dataclass(frozen=True)
class Value:
    """What is known of a value while nodes are bound.

    Attributes:
        name: Name in the graph.
        meta: Tensor without data that has the value's shape and element type.
        constant: The tensor itself where it depends on no input's content, else None.
    """

    name: str
    meta: torch.Tensor
    constant: torch.Tensor | None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the value."""
        return tuple(self.meta.shape)


class Node:
    """A node whose operator is being bound.

    Attributes:
        op_type: Its operator.
        name: Its name; may be empty.
        opset: Version of the standard operator set.
        inputs: Its inputs; None for one that is left out.
        output_count: Number of its outputs.
    """

    def __init__(
        self,
        proto: onnx.NodeProto,
        opset: int,
        inputs: Sequence[Value | None],
        output_count: int,
        floating: torch.dtype,
    ) -> None:
        self.op_type = proto.op_type
        self.name = proto.name
        self.opset = opset
        self.inputs = list(inputs)
        self.output_count = output_count
        self._attributes = {a.name: a for a in proto.attribute}
        self._unread = set(self._attributes)
        self._consumed: set[int] = set()
        self._floating = floating

    def has(self, attribute: str) -> bool:
        """Says whether an attribute is set."""
        return attribute in self._attributes

    def integer(self, attribute: str, default: int | None = None) -> int:
        """Returns an integer attribute."""
        return int(self._attribute(attribute, default))

    def number(self, attribute: str, default: float | None = None) -> float:
        """Returns a floating-point attribute."""
        return float(self._attribute(attribute, default))

    def text(self, attribute: str, default: str | None = None) -> str:
        """Returns a string attribute."""
        value = self._attribute(attribute, default)
        return value.decode() if isinstance(value, bytes) else str(value)

    def integers(self, attribute: str, default: Sequence[int] | None = None) -> list[int]:
        """Returns an attribute that lists integers."""
        return [int(i) for i in self._attribute(attribute, default)]

    def tensor(self, attribute: str) -> torch.Tensor:
        """Returns a tensor attribute, in the dtype that the network computes in."""
        return to_torch(self._attribute(attribute, None), self._floating)

    def value(self, attribute: str) -> Any:  # noqa: ANN401 - the attribute's own type
        """Returns an attribute of any type."""
        return self._attribute(attribute, None)

    def ignore(self, *attributes: str) -> None:
        """Marks attributes as read that change nothing in the cases that the operator covers."""
        self._unread -= set(attributes)

    def present(self, index: int) -> bool:
        """Says whether an input is there."""
        return index < len(self.inputs) and self.inputs[index] is not None

    def shape(self, index: int = 0) -> tuple[int, ...]:
        """Returns the shape of an input."""
        return self._input(index).shape

    def constant(self, index: int) -> torch.Tensor:
        """Returns an input that must be constant; it is then not passed to the torch function."""
        value = self._input(index)
        if value.constant is None:
            self.refuse(f"input {index} ('{value.name}') depends on the model's input")
        self._consumed.add(index)
        return value.constant

    def is_constant(self, index: int) -> bool:
        """Says whether an input is constant."""
        return self._input(index).constant is not None

    def constant_ints(self, index: int) -> list[int]:
        """Returns an input of integers that must be constant, flattened."""
        return [int(i) for i in self.constant(index).reshape(-1).tolist()]

    def dtype(self, element_type: int) -> torch.dtype:
        """Returns the dtype in which values of an ONNX element type are computed."""
        return to_dtype(element_type, self._floating)

    def refuse(self, reason: str) -> NoReturn:
        """Says that the operator does not cover this node."""
        raise Refused(reason)

    def arguments(self) -> list[Value | None]:
        """Returns the inputs that the torch function gets."""
        passed = [v for i, v in enumerate(self.inputs) if i not in self._consumed]
        while passed and passed[-1] is None:
            passed.pop()
        return passed

    def check_all_read(self) -> None:
        """Refuses attributes that the operator has not looked at."""
        if self._unread:
            self.refuse(f"attribute {', '.join(sorted(self._unread))} is not covered")

    def _input(self, index: int) -> Value:
        value = self.inputs[index] if index < len(self.inputs) else None
        if value is None:
            self.refuse(f"input {index} is missing")
        return value

    def _attribute(self, name: str, default: Any) -> Any:  # noqa: ANN401 - the attribute's own type
        self._unread.discard(name)
        if name in self._attributes:
            return onnx.helper.get_attribute_value(self._attributes[name])
        if default is None:
            self.refuse(f"attribute {name} is missing")
        return default


def to_dtype(element_type: int, floating: torch.dtype) -> torch.dtype:
    """Returns the torch dtype for an ONNX element type.

    Half, bfloat16 and single precision are all computed in `floating`, so that gradients of half
    precision models do not underflow.
    """
    if element_type in _HALF_OR_SINGLE:
        return floating
    if element_type not in _DTYPES:
        name = onnx.TensorProto.DataType.Name(element_type)
        raise Refused(f"element type {name} is not covered")
    return _DTYPES[element_type]


def to_torch(tensor: onnx.TensorProto, floating: torch.dtype) -> torch.Tensor:
    """Returns a stored tensor in the dtype that the network computes in."""
    dtype = to_dtype(tensor.data_type, floating)
    array: npt.NDArray[Any] = onnx.numpy_helper.to_array(tensor)
    if tensor.data_type in _HALF_OR_SINGLE:
        array = array.astype(np.float32)
    return torch.from_numpy(np.array(array)).to(dtype)
