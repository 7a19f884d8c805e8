"""Operators that pick, scatter and order entries, beside ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.auditors.network.ops.compare import FEW, Array, check, draw, model_of

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("reduction", ["none", "add", "mul", "max", "min"])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_scatter_elements(reduction: str, axis: int) -> None:
    """ScatterElements agrees for every reduction, negative indices included."""
    x = draw(4, 5, 6)
    index = np.stack([RNG.permutation(4)[:3] for _ in range(30)], -1).reshape(3, 5, 6)
    index = np.moveaxis(index, 0, axis) if axis else index
    index = np.where(RNG.random(index.shape) < 0.3, index - x.shape[axis], index)
    index = index[tuple(slice(0, n) for n in x.shape)]
    updates = draw(*index.shape, seed=1)
    inputs: list[Array | None] = [x, index, updates]
    check(model_of("ScatterElements", inputs, axis=axis, reduction=reduction), inputs)


@pytest.mark.parametrize("reduction", ["none", "add", "mul", "max", "min"])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_scatter_nd(reduction: str, depth: int) -> None:
    """ScatterND agrees for every reduction and depth of the indices."""
    x = draw(4, 4, 4)
    index = np.array([[0, 1, 3], [2, -1, 0], [3, 3, -2]])[:, :depth]
    inputs: list[Array | None] = [x, index, draw(3, *x.shape[depth:], seed=1)]
    check(model_of("ScatterND", inputs, reduction=reduction), inputs)


@pytest.mark.parametrize(("batch", "depth"), [(0, 1), (0, 2), (0, 3), (1, 1), (1, 2), (2, 1)])
def test_gather_nd(batch: int, depth: int) -> None:
    """GatherND agrees for all batch axes and depths."""
    x = draw(3, 3, 4, 5)
    index = RNG.integers(-3, 3, (*x.shape[:batch], 2, depth))
    inputs: list[Array | None] = [x, index]
    check(model_of("GatherND", inputs, batch_dims=batch), inputs)


@FEW
@given(
    axis=st.sampled_from([0, 1, -1]),
    k=st.integers(0, 3),
    largest=st.sampled_from([0, 1]),
    ties=st.booleans(),
)
def test_top_k(axis: int, k: int, largest: int, ties: bool) -> None:
    """TopK agrees; of equal entries those that come first win."""
    x = draw(3, 4, 5)
    x = np.round(x) if ties else x
    inputs = [x, np.array([k])]
    model = model_of("TopK", inputs, constant=[1], outputs=["y", "i"], axis=axis, largest=largest)
    check(model, inputs)


@pytest.mark.parametrize("op_type", ["ArgMax", "ArgMin"])
@pytest.mark.parametrize("last", [0, 1])
@pytest.mark.parametrize("axis", [0, -1])
def test_arg(op_type: str, last: int, axis: int) -> None:
    """ArgMax and ArgMin agree on ties."""
    inputs = [np.round(draw(3, 6))]
    check(model_of(op_type, inputs, axis=axis, select_last_index=last), inputs)


@FEW
@given(exclusive=st.sampled_from([0, 1]), reverse=st.sampled_from([0, 1]), axis=st.integers(-2, 1))
def test_cumulative_sum(exclusive: int, reverse: int, axis: int) -> None:
    """CumSum agrees from either end, with and without the entry itself."""
    inputs = [draw(3, 4), np.array(axis)]
    model = model_of("CumSum", inputs, constant=[1], exclusive=exclusive, reverse=reverse)
    check(model, inputs)


@pytest.mark.parametrize("axis", [0, 1, -1, -2])
def test_one_hot(axis: int) -> None:
    """OneHot agrees for negative indices and indices out of range."""
    inputs = [np.array([[0, 2], [-1, 7]]), np.array(3), np.array([0.5, 2.0], np.float32)]
    check(model_of("OneHot", inputs, constant=[1], axis=axis), inputs)


def test_shapes_that_depend_on_content() -> None:
    """NonZero, Compress and Unique are evaluated though their shapes depend on the input."""
    x = np.round(draw(4, 5))
    check(model_of("NonZero", [x]), [x])
    condition = np.array([True, False, True, True])
    check(model_of("Compress", [x, condition], axis=0), [x, condition])
    for order in (0, 1):
        model = model_of("Unique", [x], outputs=["y", "a", "b", "c"], sorted=order)
        check(model, [x])


@pytest.mark.parametrize("equation", ["bij,bjk->bik", "...i,...i->...", "ij->ji", "ii->i", "bi,i"])
def test_einsum(equation: str) -> None:
    """Einsum agrees with and without an output and with an ellipsis."""
    shapes: dict[str, list[tuple[int, ...]]] = {
        "bij,bjk->bik": [(2, 3, 4), (2, 4, 5)], "...i,...i->...": [(2, 3, 4), (2, 3, 4)],
        "ij->ji": [(3, 4)], "ii->i": [(3, 3)], "bi,i": [(2, 3), (3,)]}  # fmt: skip
    inputs = [draw(*shape, seed=i) for i, shape in enumerate(shapes[equation])]
    check(model_of("Einsum", inputs, equation=equation), inputs)


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int32, np.int64])
@pytest.mark.parametrize("fmod", [0, 1])
def test_remainders_of_integers(kind: type[np.integer[Any]], fmod: int) -> None:
    """Mod and Div of integers agree for every sign."""
    a = np.array([7, -7, 7, -7, 100], np.int64).astype(kind)
    b = np.array([3, 3, -3, -3, 7], np.int64).astype(kind)
    check(model_of("Mod", [a, b], fmod=fmod), [a, b])
    if np.dtype(kind).itemsize > 1:
        check(model_of("Div", [a, b]), [a, b])
