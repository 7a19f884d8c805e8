"""The version of the installed distribution."""

from __future__ import annotations

import importlib.metadata

try:
    __version__ = importlib.metadata.version("onnx-audit")
except importlib.metadata.PackageNotFoundError:  # run from a source tree
    __version__ = "0+source"
