"""Are single units more meaningful than random directions (Szegedy et al. 2013, section 3)?"""

from onnx_auditors.units.measure import measure, source_of

__all__ = ["measure", "source_of"]
