"""Figures and names of the schema as text."""

from __future__ import annotations

import math

from onnx_audit import v1


def auditor_name(auditor: v1.Auditor.ValueType) -> str:
    """An auditor's name, such as "distortion"."""
    return v1.Auditor.Name(auditor).removeprefix("AUDITOR_").lower()


def state_name(state: v1.AuditState.ValueType) -> str:
    """A state's name, such as "running"."""
    return v1.AuditState.Name(state).removeprefix("AUDIT_STATE_").lower()


def norm_name(norm: v1.Norm.ValueType) -> str:
    """A norm's name as people write it, such as "L2" or "Linf"."""
    return {"LINF": "Linf"}.get(name := v1.Norm.Name(norm).removeprefix("NORM_"), name)


def layout_name(layout: v1.Layout.ValueType) -> str:
    """A layout's name, such as "CHW"."""
    return v1.Layout.Name(layout).removeprefix("LAYOUT_")


def number(value: float) -> str:
    """A number with three significant digits."""
    if math.isnan(value):
        return "undefined"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    return f"{value:.3g}"


def estimate_text(estimate: v1.Estimate) -> str:
    """A figure with its interval, such as "0.823 [0.79, 0.861]"; "-" if there is none."""
    if not estimate.ByteSize():  # never set: not to be taken for a zero, which has a count
        return "-"
    text = number(estimate.value)
    if estimate.HasField("interval"):
        text += f" [{number(estimate.interval.lower)}, {number(estimate.interval.upper)}]"
    return text


def shape_text(shape: list[int]) -> str:
    """A shape, such as "[N, 3, 32, 32]"; open axes are N."""
    return f"[{', '.join('N' if size < 0 else str(size) for size in shape)}]"


def short_digest(digest: str) -> str:
    """The first characters of a digest: enough for people to tell them apart."""
    return digest[:12]
