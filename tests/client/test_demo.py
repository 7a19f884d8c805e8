"""The demo's own networks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from onnx_audit.cli import demo_models
from onnx_audit.cli.demo_models import load_digits, train_models


def test_exported_networks_are_those_that_were_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """ONNX Runtime reaches the stated accuracy on the files, at any batch size, and quietly."""
    monkeypatch.setattr(demo_models, "_EPOCHS", 3)
    threads = torch.get_num_threads()
    said: list[str] = []
    digits = load_digits(0)
    trained = train_models(digits, tmp_path, 0, said.append)
    assert [model.path.name for model in trained] == ["mlp-a.onnx", "mlp-b.onnx", "cnn.onnx"]
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "cnn.onnx",
        "mlp-a.onnx",
        "mlp-b.onnx",
    ]
    assert len(said) == 3
    assert torch.get_num_threads() == threads
    for model in trained:
        session = onnxruntime.InferenceSession(model.path, providers=["CPUExecutionProvider"])
        (logits,) = session.run(None, {"pixels": digits.test_x})
        assert (logits.argmax(1) == digits.test_y).mean() == pytest.approx(model.accuracy)
        (alone,) = session.run(None, {"pixels": digits.test_x[:1]})
        np.testing.assert_allclose(alone, logits[:1], atol=1e-5)
    assert capfd.readouterr().out == ""


def test_digits_are_split_once_and_for_all() -> None:
    """The same seed gives the same digits; pixels lie in [0, 1] and every class is held out."""
    first, second = load_digits(3), load_digits(3)
    np.testing.assert_array_equal(first.test_x, second.test_x)
    assert (first.train_x.min(), first.train_x.max()) == (0.0, 1.0)
    assert first.train_x.dtype == np.float32
    assert set(first.test_y[: demo_models.PROBES].tolist()) == set(range(10))
