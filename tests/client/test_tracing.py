"""Spans of the clients' calls in a program that uses OpenTelemetry."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode, format_span_id, format_trace_id
from tests.client.fake_service import FakeService

from onnx_audit import tracing
from onnx_audit.errors import NotFound


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """Where the spans of this test end up."""
    provider, exporter = TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(tracing, "tracer", lambda: provider.get_tracer("test"))
    yield exporter
    provider.shutdown()


@pytest.fixture
def headers(service: FakeService, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The traceparent that each method of the service was last called with."""
    found: dict[str, str] = {}
    enter = service.enter

    def noting(method: str, request: Message, context: grpc.ServicerContext) -> None:
        given = {key: str(value) for key, value in context.invocation_metadata()}
        found[method] = given.get("traceparent", "")
        enter(method, request, context)

    monkeypatch.setattr(service, "enter", noting)
    return found


def test_calls_are_spans_whose_context_goes_along(
    client: Any, exporter: InMemorySpanExporter, headers: dict[str, str]
) -> None:
    """Calls and streams end their spans, and the service is told of each."""
    list(client.models())
    with pytest.raises(NotFound):
        client.get_audit("audits/none")
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert set(spans) == {"ModelService/ListModels", "AuditService/GetAudit"}
    for name, span in spans.items():
        assert span.kind == SpanKind.CLIENT
        context = span.context
        assert context is not None
        trace, own = format_trace_id(context.trace_id), format_span_id(context.span_id)
        assert headers[name.partition("/")[2]] == f"00-{trace}-{own}-{context.trace_flags:02x}"


def test_a_call_that_cannot_be_made_is_an_error(exporter: InMemorySpanExporter) -> None:
    """What a call raises ends its span, and goes on to the caller."""

    def broken(_request: object, **_named: object) -> None:
        raise ValueError("closed")

    with pytest.raises(ValueError, match="closed"):
        tracing.traced("S/M", broken)(object())
    (span,) = exporter.get_finished_spans()
    assert span.status.status_code == StatusCode.ERROR


def test_programs_without_opentelemetry_pay_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The call itself is used where the program has not imported OpenTelemetry."""
    monkeypatch.delitem(sys.modules, "opentelemetry.trace")

    def call() -> None:
        """Never made."""

    assert tracing.traced("S/M", call) is call
