"""Spans of the client's calls, in programs that use OpenTelemetry, and where spans are sent.

A call's trace context goes along as W3C `traceparent`, which the service takes over. Programs that
do not use OpenTelemetry pay nothing: it is not imported here.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, Final

from onnx_audit.version import __version__

VARIABLES: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
"""OpenTelemetry's own variables; one that is set asks for spans."""


def asked_for() -> bool:
    """Whether the environment asks for spans to be exported."""
    return any(os.environ.get(name) for name in VARIABLES)


def exporting_provider(service: str, **attributes: str) -> Any:  # noqa: ANN401 - of a library that need not be there
    """A tracer provider that exports over OTLP, to where OpenTelemetry's variables say.

    Args:
        service: Name of the service, unless OTEL_SERVICE_NAME has another.
        attributes: What else is told of this process.

    Raises:
        ImportError: The extra `tracing` is not installed.
    """
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import (  # noqa: PLC0415 - optional
        OTLPSpanExporter,
    )
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    told = {"service.version": __version__, **attributes}
    if not os.environ.get("OTEL_SERVICE_NAME"):
        told["service.name"] = service
    provider = TracerProvider(resource=Resource.create(told))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


def tracer() -> Any:  # noqa: ANN401 - of a library that need not be there
    """The program's tracer, None where it does not use OpenTelemetry."""
    if "opentelemetry.trace" not in sys.modules:
        return None
    from opentelemetry import trace  # noqa: PLC0415 - see above

    return trace.get_tracer("onnx_audit", __version__)


def traced(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    """A gRPC call that is a span of the program's trace, if it has one.

    Args:
        name: Service and method.
        call: A method of a stub, synchronous or not.
    """
    using = tracer()
    if using is None:
        return call
    from opentelemetry import propagate, trace  # noqa: PLC0415 - it is there

    def spanned(*arguments: Any, **named: Any) -> Any:  # noqa: ANN401 - any call's
        span = using.start_span(name, kind=trace.SpanKind.CLIENT)
        carrier: dict[str, str] = {}
        propagate.inject(carrier, trace.set_span_in_context(span))
        metadata = (*named.pop("metadata", ()), *carrier.items())
        try:
            answer = call(*arguments, metadata=metadata, **named)
        except Exception as error:
            span.set_status(trace.StatusCode.ERROR, type(error).__name__)
            span.end()
            raise
        if hasattr(answer, "add_done_callback"):  # a call of grpc.aio, or a stream
            answer.add_done_callback(lambda _: span.end())
        elif hasattr(answer, "add_callback"):
            answer.add_callback(span.end)
        else:
            span.end()
        return answer

    return spanned
