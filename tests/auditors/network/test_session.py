"""What ONNX Runtime is asked beside its answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper
from tests.support import graph_model, save_probes

from onnx_auditors.context import open_context
from onnx_auditors.errors import UnsupportedOperator
from onnx_auditors.network import load
from onnx_auditors.network.session import newest_opset


def relu(opset: int) -> onnx.ModelProto:
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    return graph_model(nodes, {"x": ["n", 3]}, opset=opset)


def test_the_newest_opset_is_the_last_that_runs() -> None:
    """ONNX Runtime opens a model of this opset, and none of the next."""
    newest = newest_opset()
    assert newest >= 21
    ort.InferenceSession(relu(newest).SerializeToString())
    after = relu(newest)
    after.opset_import[0].version += 1
    with pytest.raises(Exception, match=r"[Oo]pset"):
        ort.InferenceSession(after.SerializeToString())


def test_an_audit_of_a_newer_opset_is_refused(tmp_path: Path) -> None:
    """What the network can form and ONNX Runtime cannot judge is refused before it is opened."""
    probes = save_probes(tmp_path / "p", np.zeros((2, 3), np.float32))
    onnx.save_model(relu(newest_opset()), tmp_path / "m.onnx")
    assert open_context(tmp_path / "m.onnx", probes).network.classes == 3
    newer = relu(newest_opset())
    newer.opset_import[0].version += 1
    onnx.save_model(newer, tmp_path / "m.onnx")
    with pytest.raises(UnsupportedOperator, match=r"newest that ONNX Runtime .* export"):
        open_context(tmp_path / "m.onnx", probes)
    if onnx.defs.onnx_opset_version() > newest_opset():
        assert load(newer).classes == 3
