"""A node as its operator sees it while it is bound: attributes, inputs, constants."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import onnx
import onnx.numpy_helper
import torch

from onnx_auditors.network.limits import Limits, check_bytes, too_large

_PRECISIONS: dict[int, torch.dtype] = {
    onnx.TensorProto.FLOAT: torch.float32,
    onnx.TensorProto.FLOAT16: torch.float16,
    onnx.TensorProto.BFLOAT16: torch.bfloat16,
}
_DTYPES: dict[int, torch.dtype] = {
    onnx.TensorProto.DOUBLE: torch.float64,
    onnx.TensorProto.INT8: torch.int8,
    onnx.TensorProto.INT16: torch.int16,
    onnx.TensorProto.INT32: torch.int32,
    onnx.TensorProto.INT64: torch.int64,
    onnx.TensorProto.UINT8: torch.uint8,
    onnx.TensorProto.UINT16: torch.uint16,
    onnx.TensorProto.UINT32: torch.uint32,
    onnx.TensorProto.UINT64: torch.uint64,
    onnx.TensorProto.BOOL: torch.bool,
    onnx.TensorProto.FLOAT8E4M3FN: torch.float8_e4m3fn,
    onnx.TensorProto.FLOAT8E4M3FNUZ: torch.float8_e4m3fnuz,
    onnx.TensorProto.FLOAT8E5M2: torch.float8_e5m2,
    onnx.TensorProto.FLOAT8E5M2FNUZ: torch.float8_e5m2fnuz,
    onnx.TensorProto.FLOAT8E8M0: torch.float8_e8m0fnu,
}
NARROW: dict[int, torch.dtype] = {
    onnx.TensorProto.INT4: torch.int8,
    onnx.TensorProto.INT2: torch.int8,
    onnx.TensorProto.UINT4: torch.uint8,
    onnx.TensorProto.UINT2: torch.uint8,
    onnx.TensorProto.FLOAT4E2M1: torch.float32,
}
"""Element types that torch lacks, and the dtypes that hold their values."""
INTEGERS = frozenset(
    {onnx.TensorProto.INT2, onnx.TensorProto.INT4, onnx.TensorProto.INT8, onnx.TensorProto.INT16,
     onnx.TensorProto.INT32, onnx.TensorProto.INT64, onnx.TensorProto.UINT2, onnx.TensorProto.UINT4,
     onnx.TensorProto.UINT8, onnx.TensorProto.UINT16, onnx.TensorProto.UINT32,
     onnx.TensorProto.UINT64}
)  # fmt: skip
_ELEMENT_TYPES = {dtype: element_type for element_type, dtype in _DTYPES.items()}


class Refused(Exception):  # noqa: N818 - control flow inside the package
    """An operator does not cover a node."""


class DependsOnInput(Refused):
    """A node cannot be bound before the content of the model's inputs is known."""


@dataclass(frozen=True)
class Value:
    """What is known of a value while nodes are bound.

    Attributes:
        name: Name in the graph.
        meta: Tensor without data that has the value's shape and element type.
        constant: The tensor itself where it depends on no input's content, else None.
        element_type: ONNX's name for its element type; FLOAT for half precision too, once computed.
    """

    name: str
    meta: torch.Tensor
    constant: torch.Tensor | None
    element_type: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the value."""
        return tuple(self.meta.shape)

    @property
    def is_carried(self) -> bool:
        """Says whether these are integers held as floats."""
        return self.element_type in INTEGERS and self.meta.is_floating_point()

    def materialised(self) -> Value:
        """Returns the value with integers as integers."""
        if not self.is_carried:
            return self
        dtype = to_dtype(self.element_type, torch.float32)
        constant = None if self.constant is None else self.constant.to(dtype)
        return Value(self.name, self.meta.to(dtype), constant, self.element_type)


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
        outputs: Sequence[str],
        floating: torch.dtype,
        limits: Limits | None = None,
    ) -> None:
        self.op_type = proto.op_type
        self.domain = proto.domain
        self.name = proto.name
        self.opset = opset
        self.inputs = list(inputs)
        self.output_count = len(outputs)
        self._outputs = list(outputs)
        self._attributes = {a.name: a for a in proto.attribute}
        self._unread = set(self._attributes)
        self._consumed: set[int] = set()
        self._floating = floating
        self._limits = limits or Limits()
        self._declared: tuple[int, ...] = ()

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
            raise DependsOnInput(f"input {index} ('{value.name}') depends on the model's input")
        self._consumed.add(index)
        return value.constant

    def is_constant(self, index: int) -> bool:
        """Says whether an input is constant."""
        return self._input(index).constant is not None

    def constant_ints(self, index: int) -> list[int]:
        """Returns an input of integers that must be constant, flattened."""
        return [int(i) for i in self.constant(index).reshape(-1).tolist()]

    def element_type(self, index: int) -> int:
        """Returns the ONNX element type of an input."""
        return self._input(index).element_type

    def declare(self, *element_types: int) -> None:
        """Says the element types of the outputs, where their dtypes do not."""
        self._declared = element_types

    def output_type(self, index: int, dtype: torch.dtype) -> int:
        """Returns the element type of an output: as declared, of the first input, or its dtype's.

        Operators that take types torch has none for keep the type of their first input.
        """
        if index < len(self._declared):
            return self._declared[index]
        first = self.inputs[0] if self.inputs else None
        if first is not None and first.meta.dtype == dtype:
            return first.element_type
        return _ELEMENT_TYPES.get(dtype, onnx.TensorProto.FLOAT)

    def wants(self, index: int) -> bool:
        """Says whether an output is read by another node or is one of the graph's."""
        return index < len(self._outputs) and bool(self._outputs[index])

    @property
    def floating(self) -> torch.dtype:
        """Dtype in which half and single precision are computed."""
        return self._floating

    def dtype(self, element_type: int) -> torch.dtype:
        """Returns the dtype in which values of an ONNX element type are computed."""
        return to_dtype(element_type, self._floating)

    def check_size(self, shape: Sequence[int], dtype: torch.dtype) -> None:
        """Checks the size of the first output before there is anything of it.

        Raises:
            LimitExceeded: It is too large.
        """
        check_bytes(self._outputs[0], shape, math.prod(shape) * dtype.itemsize, self._limits)

    def check_turns(self, turns: int) -> None:
        """Checks how often the node repeats what it does, as a loop of the graph would.

        Raises:
            LimitExceeded: Too often.
        """
        if turns > self._limits.max_steps:
            what = f"turns of {self.op_type} (node '{self.name}')"
            raise too_large("max_steps", what, turns, self._limits.max_steps)

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
    if element_type in _PRECISIONS:
        return floating
    if element_type in NARROW:
        return NARROW[element_type]
    if element_type not in _DTYPES:
        name = onnx.TensorProto.DataType.Name(element_type)
        raise Refused(f"element type {name} is not covered")
    return _DTYPES[element_type]


def output_dtype(element_type: int, found: torch.Tensor) -> torch.dtype:
    """Returns the dtype in which an output of a declared element type leaves the network."""
    if element_type in {onnx.TensorProto.UNDEFINED, onnx.TensorProto.FLOAT}:
        return found.dtype  # single precision may be computed in double on purpose
    return to_dtype(element_type, _PRECISIONS.get(element_type, found.dtype))


def to_torch(tensor: onnx.TensorProto, floating: torch.dtype) -> torch.Tensor:
    """Returns a stored tensor in the dtype that the network computes in."""
    dtype = to_dtype(tensor.data_type, floating)
    array: npt.NDArray[Any] = onnx.numpy_helper.to_array(tensor)
    if tensor.data_type in _PRECISIONS or (dtype.itemsize == 1 and dtype.is_floating_point):
        array = array.astype(np.float32)
    elif tensor.data_type in NARROW:
        array = array.astype(str(dtype).removeprefix("torch."))
    return torch.from_numpy(np.array(array)).to(dtype)
