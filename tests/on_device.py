"""Runs the audits of the tests on another device: pytest -p tests.on_device.

ONNX_AUDIT_TEST_DEVICE names it, such as "cuda:0"; models that tests open by themselves stay on the
CPU.
"""

from __future__ import annotations

import os

from onnx_auditors.context import open_context

DEVICE = os.environ.get("ONNX_AUDIT_TEST_DEVICE", "cuda:0")


def pytest_configure() -> None:
    """Makes the device the one that contexts are opened on where a test names none."""
    defaults = open_context.__defaults__ or ()
    assert "cpu" in defaults
    open_context.__defaults__ = tuple(DEVICE if d == "cpu" else d for d in defaults)
