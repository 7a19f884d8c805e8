"""The trace that a request belongs to, and OpenTelemetry spans where they are asked for.

A trace context (W3C Trace Context, https://www.w3.org/TR/trace-context/) is taken over from the
caller or made, bound to every log line of the request, and stored with the audit that the request
started, so that the work on it belongs to the same trace. Spans are exported over OTLP if the extra
`tracing` is installed and the setting or one of OpenTelemetry's own variables asks for it.
"""

from __future__ import annotations

import contextlib
import contextvars
import re
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import structlog

from onnx_audit.tracing import asked_for, exporting_provider
from onnx_audit.version import __version__

HEADER = "traceparent"
_FORM = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_UNUSED_VERSION = "ff"
_SAMPLED = 1

_current: contextvars.ContextVar[TraceContext | None] = contextvars.ContextVar(
    "trace", default=None
)


class TracingMissingError(RuntimeError):
    """Spans were asked for and OpenTelemetry is not installed."""


@dataclass(frozen=True)
class TraceContext:
    """A place in a trace.

    Attributes:
        trace_id: 32 hexadecimal characters, not all 0.
        span_id: 16 hexadecimal characters, not all 0.
        sampled: Whether the caller records its part of the trace.
    """

    trace_id: str
    span_id: str
    sampled: bool

    def __str__(self) -> str:
        return f"00-{self.trace_id}-{self.span_id}-{int(self.sampled):02x}"


def parse(text: str) -> TraceContext | None:
    """The context in a `traceparent` header, None where it is malformed."""
    match = _FORM.fullmatch(text)
    if match is None or match[1] == _UNUSED_VERSION or (match[1] == "00" and match[5]):
        return None
    if not int(match[2], 16) or not int(match[3], 16):
        return None
    return TraceContext(match[2], match[3], bool(int(match[4], 16) & _SAMPLED))


def current() -> TraceContext | None:
    """The context of the request that is being answered."""
    return _current.get()


class Span:
    """A piece of work in a trace; nothing but a context where spans are not exported."""

    def __init__(self, context: TraceContext, recorded: Any = None) -> None:  # noqa: ANN401 - of an optional library
        self.context = context
        self._recorded = recorded

    def end(self, error: str = "", end_ns: int | None = None, **attributes: str | int) -> None:
        """Ends the work, with what went wrong if anything did."""
        if self._recorded is None:
            return
        from opentelemetry.trace import StatusCode  # noqa: PLC0415 - optional

        for name, value in attributes.items():
            self._recorded.set_attribute(f"onnx_audit.{name}", value)
        if error:
            self._recorded.set_status(StatusCode.ERROR, error)
        self._recorded.end(end_time=end_ns)


class _Exporter:
    """OpenTelemetry's provider, once it is configured."""

    provider: Any = None


def configure(*, wanted: bool, role: str) -> None:
    """Makes this process export spans if the setting or the environment asks for it.

    Args:
        wanted: What the setting says.
        role: What this process is, "server" or "worker".

    Raises:
        TracingMissingError: It is asked for and not installed.
    """
    if not wanted and not asked_for():
        return
    try:
        _Exporter.provider = exporting_provider(f"onnx-audit-{role}", **{"onnx_audit.role": role})
    except ImportError:
        raise TracingMissingError(
            "traces are asked for (setting tracing, or OTEL_EXPORTER_OTLP_ENDPOINT), which need "
            "the tracing extra: pip install 'onnx-audit[server,tracing]'"
        ) from None


def close() -> None:
    """Sends what has not been sent."""
    if _Exporter.provider is not None:
        _Exporter.provider.shutdown()


def start(
    name: str,
    parent: TraceContext | None,
    kind: str = "INTERNAL",
    attributes: Mapping[str, str | int] | None = None,
    start_ns: int | None = None,
) -> Span:
    """Begins a piece of work.

    Args:
        name: What it is; of few values.
        parent: Where it belongs; None begins a trace.
        kind: OpenTelemetry's SpanKind.
        attributes: What it is about.
        start_ns: When it began, in nanoseconds since 1970; now by default.
    """
    if _Exporter.provider is None:
        sampled = parent is not None and parent.sampled
        trace_id = secrets.token_hex(16) if parent is None else parent.trace_id
        return Span(TraceContext(trace_id, secrets.token_hex(8), sampled))
    from opentelemetry import trace  # noqa: PLC0415 - optional

    recorded = _Exporter.provider.get_tracer("onnx_audit_server", __version__).start_span(
        name,
        context=_context(parent),
        kind=trace.SpanKind[kind],
        attributes=attributes,
        start_time=start_ns,
    )
    found = recorded.get_span_context()
    context = TraceContext(
        trace.format_trace_id(found.trace_id),
        trace.format_span_id(found.span_id),
        bool(found.trace_flags.sampled),
    )
    return Span(context, recorded)


def _context(parent: TraceContext | None) -> Any:  # noqa: ANN401 - of an optional library
    from opentelemetry import context, trace  # noqa: PLC0415 - optional

    if parent is None:
        return context.Context()
    remote = trace.SpanContext(
        int(parent.trace_id, 16),
        int(parent.span_id, 16),
        is_remote=True,
        trace_flags=trace.TraceFlags(_SAMPLED if parent.sampled else 0),
    )
    return trace.set_span_in_context(trace.NonRecordingSpan(remote), context.Context())


def bind(context: TraceContext) -> None:
    """Makes a context this request's: log lines carry it from now on."""
    _current.set(context)
    structlog.contextvars.bind_contextvars(trace_id=context.trace_id, span_id=context.span_id)


@contextlib.contextmanager
def work(name: str, traceparent: str, attributes: Mapping[str, str | int]) -> Iterator[None]:
    """A piece of work on behalf of an audit, in the trace that is stored with it.

    Args:
        name: What it is; of few values.
        traceparent: The audit's.
        attributes: What it is about.
    """
    span = start(name, parse(traceparent), "CONSUMER", attributes)
    bind(span.context)
    try:
        yield
    except BaseException as error:
        span.end(error=str(error) or type(error).__name__)
        raise
    span.end()
