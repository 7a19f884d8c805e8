"""From an ONNX file to a network that can be differentiated, and the proof that it is the same."""

from onnx_auditors.network.attaching import find_value, with_head
from onnx_auditors.network.head import Head, fit_head
from onnx_auditors.network.layers import Layer
from onnx_auditors.network.limits import Limits
from onnx_auditors.network.loading import load
from onnx_auditors.network.network import Network
from onnx_auditors.network.parity import parity, require
from onnx_auditors.network.session import Session

__all__ = [
    "Head", "Layer", "Limits", "Network", "Session", "find_value", "fit_head", "load", "parity",
    "require", "with_head",
]  # fmt: skip
