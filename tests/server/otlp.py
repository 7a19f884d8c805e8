"""An OpenTelemetry collector in this process, which keeps the spans that it is sent."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)


class Collector(TraceServiceServicer):
    """Takes spans over OTLP.

    Attributes:
        address: Where it listens, as OTEL_EXPORTER_OTLP_ENDPOINT has it.
        spans: Pairs of a service's name and a span.
    """

    def __init__(self) -> None:
        self.address = ""
        self.spans: list[tuple[str, Any]] = []

    def Export(  # noqa: N802 - gRPC's name
        self, request: ExportTraceServiceRequest, _context: grpc.ServicerContext
    ) -> ExportTraceServiceResponse:
        """Keeps spans."""
        for part in request.resource_spans:
            names = [each for each in part.resource.attributes if each.key == "service.name"]
            for scope in part.scope_spans:
                self.spans += [(names[0].value.string_value, span) for span in scope.spans]
        return ExportTraceServiceResponse()

    def trace(self, trace_id: str) -> list[tuple[str, Any]]:
        """The spans of a trace."""
        return [(name, span) for name, span in self.spans if span.trace_id.hex() == trace_id]

    def wait_for(self, trace_id: str, names: set[str], seconds: float = 30) -> None:
        """Waits until a trace has spans of these names."""
        deadline = time.monotonic() + seconds
        while names - {span.name for _, span in self.trace(trace_id)}:
            found = sorted({span.name for _, span in self.spans})
            assert time.monotonic() < deadline, f"{sorted(names)} wanted, {found} came"
            time.sleep(0.05)


@contextmanager
def collector() -> Iterator[Collector]:
    """Runs a collector."""
    made = Collector()
    server = grpc.server(ThreadPoolExecutor(2))
    add_TraceServiceServicer_to_server(made, server)  # type: ignore[no-untyped-call] # generated
    made.address = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield made
    server.stop(None).wait()
