"""What the API process may import without the heavy libraries."""

from __future__ import annotations

import subprocess
import sys

import pytest

from onnx_audit import v1
from onnx_auditors.registry import AUDITORS, NAMES


@pytest.mark.parametrize("module", ["probes", "input_spec", "errors", "registry", "auditor"])
def test_light_modules(module: str) -> None:
    """Importing it imports none of the heavy libraries, and no gRPC."""
    code = (
        f"import sys, onnx_auditors.{module}; "
        "print([m for m in ('torch', 'onnx', 'onnxruntime', 'scipy', 'grpc') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_registry() -> None:
    """Each auditor that there is can be had and is of its kind; every kind has a name."""
    assert set(AUDITORS) == set(NAMES)
    assert all(AUDITORS[kind].kind == kind for kind in AUDITORS)
    assert set(NAMES.values()) == {f.name for f in v1.AuditorConfigs.DESCRIPTOR.fields}
