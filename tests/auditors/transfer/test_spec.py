"""Unlike models on one probe space: sizes and layouts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper
from tests.auditors.transfer.planted import run
from tests.support import graph_model

from onnx_audit import v1
from onnx_auditors.errors import ProbesDoNotFit
from onnx_auditors.transfer.resizing import weights


def image_model(height: int, width: int, seed: int) -> onnx.ModelProto:
    """Returns a linear classifier of [1, height, width] images into 3 classes."""
    random = np.random.default_rng(seed)
    w = random.normal(size=(height * width, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Flatten", ["x"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["y"]),
    ]
    return graph_model(nodes, {"x": ["n", 1, height, width]}, {"w": w})


@pytest.mark.parametrize(("length", "target"), [(28, 14), (14, 28), (10, 7), (5, 5)])
def test_weights_of_resizing(length: int, target: int) -> None:
    """Rows are averages, the same as torch's, and at the same size nothing changes."""
    matrix = weights(length, target)
    assert matrix.shape == (target, length)
    assert (matrix >= 0).all()
    torch.testing.assert_close(matrix.sum(1), torch.ones(target))
    if length == target:
        torch.testing.assert_close(matrix, torch.eye(length))
    # torch 2.13 takes the first row for all where the other axis has one pixel.
    units = torch.eye(length)[:, None, :, None].repeat(1, 1, 1, 2)
    expected = torch.nn.functional.interpolate(
        units, size=(target, 2), mode="bilinear", antialias=True
    )
    torch.testing.assert_close(matrix, expected[:, 0, :, 0].T)


def test_a_peer_of_another_size(tmp_path: Path) -> None:
    """It gets the probes as torch resizes them, and the report says so."""
    inputs = np.random.default_rng(0).random((24, 1, 12, 10)).astype(np.float32)
    labels = np.random.default_rng(1).integers(3, size=24)
    audit = run(
        tmp_path,
        [image_model(12, 10, 0), image_model(6, 20, 1)],
        v1.TransferConfig(budget=20, peers=[v1.PeerModel()], attacks=[v1.TRANSFER_ATTACK_MINIMAL]),
        inputs,
        labels,
        v1.InputSpec(lower=[0.0], upper=[1.0], probe_layout=v1.LAYOUT_CHW),
    )
    detail = audit.section.details[1]
    assert (detail.resized_height, detail.resized_width) == (6, 20)
    assert any("resized to [1, 6, 20]" in note for note in detail.notes)
    session = onnxruntime.InferenceSession(audit.models[1])

    def ask(x: np.ndarray) -> np.ndarray:
        small = torch.nn.functional.interpolate(
            torch.from_numpy(x), size=(6, 20), mode="bilinear", antialias=True
        )
        found: np.ndarray = session.run(None, {"x": small.numpy()})[0].argmax(1)
        return found

    assert detail.clean_accuracy.value == (ask(inputs) == labels).mean()
    table = audit.examples()
    np.testing.assert_array_equal(table["answers"][:, 1], ask(table["example"]))
    assert (ask(table["example"]) != table["label"])[table["source"] == 1].all()


def test_vectors_are_not_resized(tmp_path: Path) -> None:
    """Probes that are no images fit models of their size alone."""
    inputs = np.random.default_rng(0).random((4, 120)).astype(np.float32)
    flat = graph_model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        {"x": ["n", 120]},
        {"w": np.ones((120, 3), np.float32)},
    )
    with pytest.raises(ProbesDoNotFit) as caught:
        run(
            tmp_path,
            [flat, image_model(6, 10, 0)],
            v1.TransferConfig(peers=[v1.PeerModel()]),
            inputs,
            None,
            v1.InputSpec(lower=[0.0], upper=[1.0]),
        )
    assert caught.value.metadata["field"] == "peers[0].input_spec"
    assert "120" in str(caught.value)
