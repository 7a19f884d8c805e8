"""A linear classifier with probes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from tests.auditors.distortion.audits import CLASSES, COUNT, WIDTH, linear_model
from tests.support import save_probes


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Returns a linear classifier and probes, the last quarter with wrong labels."""
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((CLASSES, WIDTH))
    inputs = rng.random((COUNT, WIDTH), dtype=np.float32)
    labels = (inputs @ weights.T.astype(np.float32)).argmax(1)
    labels[-10:] = (labels[-10:] + 1) % CLASSES
    onnx.save_model(linear_model(weights), tmp_path / "m.onnx")
    return tmp_path / "m.onnx", save_probes(tmp_path / "p.safetensors", inputs, labels)
