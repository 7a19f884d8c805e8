"""8-bit products beside exact integers, on processors that saturate them and on others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from tests.auditors.network.exports import exported, quantize
from tests.auditors.network.ops.compare import FEW
from tests.support import graph_model, save_probes

from onnx_audit import v1
from onnx_auditors.audit import plan
from onnx_auditors.context import open_context
from onnx_auditors.errors import ParityFailed
from onnx_auditors.network import Session, load, parity, require
from onnx_auditors.network.saturation import can_saturate, products, unsigned
from onnx_auditors.network.session import saturates

Array = npt.NDArray[Any]
ONE = np.array(1.0, np.float32)
FIRST = np.random.default_rng(0).integers(180, 256, (3, 32)).astype(np.uint8)


def weights(largest: int = 127, columns: int = 5) -> npt.NDArray[np.int8]:
    """Returns numbers of which pairs have one sign, so that sums of two products are large."""
    rng = np.random.default_rng(1)
    signs = np.repeat(rng.choice([-1, 1], (16, columns)), 2, axis=0)
    return (signs * rng.integers(largest // 2, largest + 1, (32, columns))).astype(np.int8)


SECOND = weights()[:5, :4].copy()


def product(op_type: str, stored: dict[str, Array], kind: int = TensorProto.UINT8) -> Any:
    """Returns a model of one product of "x" and "w"."""
    names = {"MatMulInteger": ["x", "w", "xz", "wz"], "QGemm": ["x", "one", "xz", "w", "ws", "wz"]}
    stored = {"ws": np.ones_like(stored.get("wz", ONE), np.float32), **stored}
    domain = "com.microsoft" if op_type == "QGemm" else ""
    node = helper.make_node(op_type, [n if n in stored or n == "x" else "" for n in names[op_type]],
                            ["y"], domain=domain)  # fmt: skip
    model = graph_model([node], {"x": ["n", 32]}, stored, check=False)
    model.graph.input[0].type.tensor_type.elem_type = kind
    is_float = op_type == "QGemm"
    model.graph.output[0].type.tensor_type.elem_type = (
        TensorProto.FLOAT if is_float else TensorProto.INT32
    )
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return model


def run(model: onnx.ModelProto, x: Array) -> npt.NDArray[np.int64]:
    session = ort.InferenceSession(model.SerializeToString())
    y, *_ = session.run(None, {"x": x})
    return np.array(y, np.int64)


def in_16_bits(x: Array, w: Array) -> npt.NDArray[np.int64]:
    """Returns x @ w with sums of two products cut off at 16 bits, as the instruction does."""
    terms = x[:, :, None].astype(np.int64) * w.astype(np.int64)
    pairs = terms[:, 0::2] + terms[:, 1::2]
    cut: npt.NDArray[np.int64] = np.clip(pairs, -(2**15), 2**15 - 1)
    return np.asarray(cut.sum(1))


@pytest.mark.parametrize("op_type", ["MatMulInteger", "QGemm"])
def test_what_the_processor_does(op_type: str) -> None:
    """Left to itself, ONNX Runtime is exact, or cuts pairs off where the probe says so."""
    w = weights()
    stored: dict[str, Array] = {
        "w": w,
        "xz": np.array(0, np.uint8),
        "wz": np.array(0, np.int8),
        "one": ONE,
    }
    exact = FIRST.astype(np.int64) @ w.astype(np.int64)
    assert (exact != in_16_bits(FIRST, w)).all()
    expected = in_16_bits(FIRST, w) if saturates() else exact
    np.testing.assert_array_equal(run(product(op_type, stored), FIRST), expected)


@FEW
@given(
    op_type=st.sampled_from(["MatMulInteger", "QGemm"]),
    zero=st.sampled_from(["none", "one", "columns"]),
    offset=st.integers(0, 9),
    both=st.booleans(),
)
def test_unsigned_weights_are_exact(op_type: str, zero: str, offset: int, both: bool) -> None:
    """Weights written as unsigned numbers give exact products, also where two nodes share them."""
    w = weights()
    stored: dict[str, Array] = {"xz": np.array(offset, np.uint8), "one": ONE}
    wz = {"none": None, "one": np.array(-3, np.int8), "columns": np.arange(5).astype(np.int8)}[zero]
    if op_type == "QGemm" and wz is None:
        wz = np.array(0, np.int8)
    model = product(op_type, {**stored, "w": w, **({} if wz is None else {"wz": np.asarray(wz)})})
    if both:
        again = model.graph.node.add()
        again.CopyFrom(model.graph.node[0])
        again.output[0] = "again"
        info = model.graph.output.add()
        info.CopyFrom(model.graph.output[0])
        info.name = "again"
    changed = unsigned(model)
    assert not list(products(changed))
    exact = (FIRST.astype(np.int64) - offset) @ (w.astype(np.int64) - (0 if wz is None else wz))
    np.testing.assert_array_equal(run(changed, FIRST), exact)


def test_what_stays_as_it_is() -> None:
    """Weights near 0, weights that are computed, and products of two signed numbers."""
    stored: dict[str, Array] = {"xz": np.array(0, np.uint8), "wz": np.array(0, np.int8), "one": ONE}
    narrow = product("QGemm", {**stored, "w": weights(64)})
    assert unsigned(narrow) is narrow
    assert not can_saturate(narrow)
    np.testing.assert_array_equal(run(narrow, FIRST), FIRST.astype(np.int64) @ weights(64))
    signed = product(
        "QGemm", {**stored, "w": weights(), "xz": np.array(0, np.int8)}, TensorProto.INT8
    )
    assert unsigned(signed) is signed
    assert not can_saturate(signed)
    computed = product("MatMulInteger", {**stored, "w": weights()})
    computed.graph.node[0].input[1] = "v"
    computed.graph.node.insert(0, helper.make_node("Identity", ["w"], ["v"]))
    assert unsigned(computed) is computed
    assert [(p.stored, p.wide) for p in products(computed)] == [(False, True)]
    assert can_saturate(computed)


def chain(w: Array, second: int, opset: int) -> onnx.ModelProto:
    """Returns two quantised products: of unsigned and signed, and of this type and signed."""
    name = helper.tensor_dtype_to_np_dtype(second)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "one", "z"], ["q"]),
        helper.make_node("QLinearMatMul", ["q", "one", "z", "w", "one", "wz", "big", "half"],
                         ["p"]),
        helper.make_node("DequantizeLinear", ["p", "big", "half"], ["h"]),
        helper.make_node("QuantizeLinear", ["h", "big", "z2"], ["r"]),
        helper.make_node("QLinearMatMul", ["r", "big", "z2", "v", "one", "vz", "bigger", "z2"],
                         ["s"]),
        helper.make_node("DequantizeLinear", ["s", "bigger", "z2"], ["y"]),
    ]  # fmt: skip
    stored: dict[str, Array] = {
        "one": ONE, "z": np.array(0, np.uint8), "wz": np.array(0, np.int8),
        "vz": np.array(0, np.int8), "big": np.array(4000.0, np.float32),
        "half": np.array(128, np.uint8), "w": w, "v": SECOND,
        "z2": np.array(128 if name == np.uint8 else 0, name), "bigger": np.array(1e6, np.float32),
    }  # fmt: skip
    return graph_model(nodes, {"x": ["n", 32]}, stored, opset=opset)


@pytest.mark.parametrize("opset", [20, 21])
@pytest.mark.parametrize("second", [TensorProto.UINT8, TensorProto.INT8])
@pytest.mark.parametrize("largest", [64, 127])
def test_an_audit_is_of_exact_products_or_refused_in_words(
    largest: int, second: int, opset: int
) -> None:
    """Only where ONNX Runtime saturates and cannot be kept from it does parity fail, and says why.

    It is not kept from it where a signed factor meets a signed one too, and from opset 21 on.
    """
    model, x = chain(weights(largest), second, opset), FIRST.astype(np.float32)
    session = Session(model.SerializeToString())
    if saturates() and largest == 127 and (second == TensorProto.INT8 or opset == 21):
        with pytest.raises(ParityFailed, match=r"no VNNI .* reduce_range=True"):
            parity(load(model), session, x)
        return
    result = parity(load(model), session, x)
    require(result)
    assert result.tolerance < 0.1
    q = np.clip(np.rint(FIRST.astype(np.int64) @ weights(largest).astype(np.int64) / 4000), -128,
                127)  # fmt: skip
    expected = 1e6 * np.clip(np.rint(q @ SECOND.astype(np.int64) / 250), -128, 127)
    np.testing.assert_allclose(session.run(x), expected)


@pytest.mark.parametrize("form", ["QDQ", "QOperator"])
def test_a_file_that_can_saturate_is_known(form: str, tmp_path: Path) -> None:
    """What the quantiser writes can saturate, and what it writes in a reduced range cannot.

    The report of an audit warns of the one alone.
    """
    single = exported("mlp", dynamo=False, fixed=1)
    x = np.random.default_rng(3).random((5, 8, 8), dtype=np.float32)
    assert not can_saturate(onnx.load_from_string(single))
    probes = save_probes(tmp_path / "p", x)
    for reduce_range in (False, True):
        content = quantize(single, x, form, reduce_range=reduce_range)
        assert can_saturate(onnx.load_from_string(content)) is not reduce_range
        (tmp_path / "m.onnx").write_bytes(content)
        spec = v1.InputSpec(lower=[0], upper=[1], divisor=1)
        planned = plan(v1.AuditorConfigs(), open_context(tmp_path / "m.onnx", probes, spec))
        assert planned.parity.passed
        codes = [warning.code for warning in planned.warnings]
        assert codes == ["SURROGATE_GRADIENTS", "SATURATING_PRODUCTS"][: 1 if reduce_range else 2]
