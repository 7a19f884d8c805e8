"""When outputs of two implementations of a model agree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from onnx import TensorProto, helper

Array = npt.NDArray[Any]

_EXACT_BITS = {"bfloat16": (np.int16, torch.bfloat16),
               "float8_e4m3fn": (np.int8, torch.float8_e4m3fn),
               "float8_e5m2": (np.int8, torch.float8_e5m2),
               "float8_e4m3fnuz": (np.int8, torch.float8_e4m3fnuz),
               "float8_e5m2fnuz": (np.int8, torch.float8_e5m2fnuz),
               "float8_e8m0fnu": (np.int8, torch.float8_e8m0fnu)}  # fmt: skip


def to_torch(array: Array) -> torch.Tensor:
    """Returns a tensor of the array; 4- and 2-bit types are widened, as torch has none."""
    array = np.asarray(array)
    if array.dtype.name in _EXACT_BITS:
        bits, dtype = _EXACT_BITS[array.dtype.name]
        return torch.from_numpy(np.array(array.view(bits))).view(dtype)
    if array.dtype.name in {"int4", "int2"}:
        return torch.from_numpy(array.astype(np.int8))
    if array.dtype.name in {"uint4", "uint2"}:
        return torch.from_numpy(array.astype(np.uint8))
    if array.dtype.name == "float4_e2m1fn":
        return torch.from_numpy(array.astype(np.float32))
    return torch.from_numpy(np.array(array))


def agree(found: Sequence[Any], expected: Sequence[Any], *, of_largest: bool = False) -> bool:
    """Says whether outputs agree in number, type, shape and values.

    Args:
        found: Outputs.
        expected: Outputs that they are compared with.
        of_largest: Whether a difference is taken relative to the largest entry, as one that comes
            of rounding is.
    """
    pairs = zip(found, expected, strict=False)
    return len(found) == len(expected) and all(_agree(*p, of_largest=of_largest) for p in pairs)


def _agree(found: Any, expected: Any, *, of_largest: bool = False) -> bool:  # noqa: ANN401, PLR0911 - a tensor or a list of them; one for each way to differ
    if isinstance(expected, list):
        return isinstance(found, list) and agree(found, expected)
    if found is None or expected is None or isinstance(found, list):
        return found is None and expected is None
    expected = np.asarray(expected)
    if isinstance(found, torch.Tensor):
        like = to_torch(expected) if expected.dtype.kind != "U" else None
        if like is None or found.dtype != like.dtype:
            return False
        found, expected = _plain(found), _plain(like)
    else:
        found = np.asarray(found)
        if found.dtype != expected.dtype:
            return False
    if found.shape != expected.shape:
        return False
    if expected.dtype.kind not in "fcV" and expected.dtype.name not in _EXACT_BITS:
        return bool(np.array_equal(found, expected))
    relative, absolute = _tolerance(expected.dtype.name)
    with np.errstate(invalid="ignore"):  # NaN has no real and imaginary part
        a, b = found.astype(np.complex128), expected.astype(np.complex128)
    if of_largest:
        finite = np.abs(b[np.isfinite(b)])
        absolute = max(absolute, relative * float(finite.max(initial=0.0)))
    return bool(np.allclose(a, b, rtol=relative, atol=absolute, equal_nan=True))


def _plain(x: torch.Tensor) -> Array:
    array: Array = (
        (x.float() if x.dtype.itemsize == 1 and x.is_floating_point() else x).numpy()
        if (x.dtype != torch.bfloat16)
        else x.float().numpy().astype(helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16))
    )
    return array


def _tolerance(dtype: str) -> tuple[float, float]:
    return {"float16": (5e-3, 1e-3), "bfloat16": (2e-2, 1e-2)}.get(dtype, (1e-3, 1e-5))
