"""The smallest change of an input that changes the answer (Szegedy et al. 2013, section 4)."""

from onnx_auditors.distortion.minimal import Result, minimal

__all__ = ["Result", "minimal"]
