"""Spans of the command line's calls, where OpenTelemetry's own variables ask for them."""

from __future__ import annotations

import atexit

from onnx_audit.tracing import asked_for, exporting_provider


def configure() -> None:
    """Makes this process use OpenTelemetry; without the extra or a variable it does nothing."""
    if not asked_for():
        return
    try:
        provider = exporting_provider("onnx-audit-client")
    except ImportError:  # the variables are for other programs
        return
    from opentelemetry import trace  # noqa: PLC0415 - it is there

    trace.set_tracer_provider(provider)
    atexit.register(provider.shutdown)
