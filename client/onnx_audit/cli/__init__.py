"""The command line: `onnx-audit`."""

from onnx_audit.cli.app import main

__all__ = ["main"]
