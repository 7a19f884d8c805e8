"""Metrics and logs of a real server that has done some work."""

from __future__ import annotations

import json
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from deploy.grafana import dashboard
from docs import metrics_table
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from tests import models
from tests.deploy.prometheus import (
    Prometheus,
    alerts,
    device_exporter,
    operands,
    program,
    prometheus,
    scaling,
)
from tests.server.otlp import Collector, collector
from tests.service import ROOT, ServiceProcess

from onnx_audit import Client, v1
from onnx_audit import tracing as client_tracing
from onnx_audit.errors import NotFound
from onnx_audit.v1 import audit_pb2_grpc
from onnx_audit_server import tracing
from onnx_audit_server.metrics import CATALOGUE

CONFIG = v1.AuditorConfigs(distortion=v1.DistortionConfig(budget=20))
LONGER = v1.AuditorConfigs(distortion=v1.DistortionConfig(budget=600))
"""Lasts for more than one scrape."""


@pytest.fixture(scope="module")
def spans() -> Iterator[Collector]:
    """A collector that clients and servers of this module send their spans to."""
    with collector() as made, pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", made.address)
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        yield made


@pytest.fixture(scope="module")
def service(spans: Collector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """A server that exports its spans."""
    assert spans.address
    with ServiceProcess(tmp_path_factory.mktemp("service") / "data") as process:
        yield process


@pytest.fixture(scope="module")
def client(service: ServiceProcess) -> Iterator[Client]:
    """A client whose calls are traced, as a program that uses OpenTelemetry would have it."""
    provider = TracerProvider(resource=Resource.create({"service.name": "pipeline"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    with pytest.MonkeyPatch.context() as patch, service.client() as client:
        # The provider of a whole process can be set but once.
        patch.setattr(client_tracing, "tracer", lambda: provider.get_tracer("test"))
        yield client
    provider.shutdown()


@pytest.fixture(scope="module")
def audit(client: Client, model: v1.Model, probe_set: v1.ProbeSet) -> v1.Audit:
    """An audit that has ended, and an error that was answered."""
    with pytest.raises(NotFound):
        client.get_audit("audits/none")
    return client.wait(client.audit(model, probe_set, auditors=CONFIG))


def scrape(service: ServiceProcess) -> dict[str, Metric]:
    with urllib.request.urlopen(f"http://{service.addresses['http']}/metrics") as response:
        text = response.read().decode()
    return {metric.name: metric for metric in text_string_to_metric_families(text)}


def value(metric: Metric, name: str, **labels: str) -> float:
    found = [s.value for s in metric.samples if s.name == name and s.labels == labels]
    assert len(found) == 1, f"{name} {labels}: {metric.samples}"
    return float(found[0])


def test_metrics_count_what_happened(service: ServiceProcess, audit: v1.Audit) -> None:
    """Calls, uploads, shards and audits are counted, in base units."""
    metrics = scrape(service)
    get = "/onnx_audit.v1.AuditService/GetAudit"
    rpcs = metrics["onnx_audit_rpcs"]
    assert value(rpcs, "onnx_audit_rpcs_total", method=get, code="NOT_FOUND") == 1
    create = "/onnx_audit.v1.AuditService/CreateAudit"
    assert value(rpcs, "onnx_audit_rpcs_total", method=create, code="OK") == 1
    uploaded = metrics["onnx_audit_uploaded_bytes"]
    assert value(uploaded, "onnx_audit_uploaded_bytes_total") > 40 * 16 * 4
    ended = metrics["onnx_audit_audits_ended"]
    labels = {"state": "succeeded", "verdict": "none"}
    assert value(ended, "onnx_audit_audits_ended_total", **labels) == 1
    assert value(metrics["onnx_audit_audits"], "onnx_audit_audits", **labels) == 1
    shards = metrics["onnx_audit_shard_seconds"]
    count = value(shards, "onnx_audit_shard_seconds_count", auditor="distortion")
    assert count == audit.progress.shards_total
    assert value(metrics["onnx_audit_queue_depth"], "onnx_audit_queue_depth") == 0
    assert value(metrics["onnx_audit_queue_oldest_seconds"], "onnx_audit_queue_oldest_seconds") == 0
    for device in ("cpu", "cuda"):
        waiting = metrics["onnx_audit_tasks_waiting"]
        assert value(waiting, "onnx_audit_tasks_waiting", device=device) == 0
    created, started, ended_at = (
        moment.ToNanoseconds() / 1e9
        for moment in (audit.create_time, audit.start_time, audit.end_time)
    )
    took, waited = metrics["onnx_audit_audit_seconds"], metrics["onnx_audit_queue_wait_seconds"]
    assert value(took, f"{took.name}_count", state="succeeded") == 1
    took_seconds = value(took, f"{took.name}_sum", state="succeeded")
    assert took_seconds == pytest.approx(ended_at - started, abs=1e-5)
    assert value(waited, f"{waited.name}_count") == 1
    assert value(waited, f"{waited.name}_sum") == pytest.approx(started - created, abs=1e-5)
    uploads = metrics["onnx_audit_uploads"]
    assert value(uploads, "onnx_audit_uploads_total", outcome="complete") == 2
    assert value(metrics["onnx_audit_worker_slots"], "onnx_audit_worker_slots") == 1
    assert value(metrics["onnx_audit_worker_slots_busy"], "onnx_audit_worker_slots_busy") == 0


def test_the_figures_of_the_work_are_those_of_the_report(
    service: ServiceProcess, client: Client, audit: v1.Audit
) -> None:
    """Gradient evaluations and parity are counted as the report says them."""
    metrics, report = scrape(service), client.report(audit)
    counted = value(
        metrics["onnx_audit_gradient_evaluations"],
        "onnx_audit_gradient_evaluations_total",
        auditor="distortion",
    )
    # The report rounds each probe's up, and leaves those out that measure its own reliability.
    said = sum(norm.evaluations for norm in report.distortion.norms)
    assert said > 0
    assert said - 40 * len(report.distortion.norms) <= counted <= 3 * said
    parity = metrics["onnx_audit_parity_relative_difference"]
    assert value(parity, f"{parity.name}_count") == 1
    assert value(parity, f"{parity.name}_sum") == report.parity.max_relative_difference


def test_what_has_not_happened_is_exported_as_zero(
    service: ServiceProcess, audit: v1.Audit
) -> None:
    """Alerts can rely on every series of a known label value being there."""
    assert audit.state == v1.AUDIT_STATE_SUCCEEDED
    metrics = scrape(service)
    failed = {"state": "failed", "verdict": "none"}
    assert value(metrics["onnx_audit_audits"], "onnx_audit_audits", **failed) == 0
    ended = metrics["onnx_audit_audits_ended"]
    assert value(ended, "onnx_audit_audits_ended_total", **failed) == 0
    units = value(
        metrics["onnx_audit_shard_seconds"], "onnx_audit_shard_seconds_count", auditor="units"
    )
    assert units == 0
    policy = "/onnx_audit.v1.AuditService/EvaluatePolicy"
    rpcs = metrics["onnx_audit_rpcs"]
    assert value(rpcs, "onnx_audit_rpcs_total", method=policy, code="OK") == 0


def test_no_digest_or_id_is_a_label(service: ServiceProcess, audit: v1.Audit) -> None:
    """The number of series does not grow with the number of models and audits."""
    secrets = [part.partition("/")[2] for part in (audit.name, audit.model, audit.probe_set)]
    for metric in scrape(service).values():
        for sample in metric.samples:
            for label in sample.labels.values():
                assert not any(secret in label for secret in secrets)


def test_every_metric_is_documented(service: ServiceProcess, audit: v1.Audit) -> None:
    """docs/metrics.md is what the code gives, and names all metrics and no others."""
    assert audit.name
    assert (ROOT / "docs" / "metrics.md").read_text() == metrics_table.render(), (
        "run docs/metrics_table.py"
    )
    exported = {
        metric.name + ("_total" if metric.type == "counter" else ""): metric
        for metric in scrape(service).values()
        if not metric.name.startswith("process_")
    }
    there = {name for name in CATALOGUE if not name.startswith("onnx_audit_device_")}
    assert there <= set(exported) <= set(CATALOGUE)
    for name, metric in exported.items():
        known = CATALOGUE[name]
        assert (metric.type, metric.documentation) == (known.kind, known.meaning)
        labels = {label for sample in metric.samples for label in sample.labels} - {"le"}
        assert labels <= set(known.labels)


def test_log_lines_carry_their_context(service: ServiceProcess, audit: v1.Audit) -> None:
    """Lines of RPCs have a request id, lines of work have audit, auditor and shard."""
    lines = service.log_lines()
    rpcs = [line for line in lines if line["event"] == "rpc"]
    assert rpcs
    assert all(line["request_id"] for line in rpcs)
    assert len({line["request_id"] for line in rpcs}) == len(rpcs)
    identifier = audit.name.partition("/")[2]
    accepted = [line for line in lines if line["event"] == "audit accepted"]
    assert [(line["audit"], bool(line["request_id"])) for line in accepted] == [(identifier, True)]
    shards = [line for line in lines if line.get("task") == "shard"]
    assert {line["shard"] for line in shards} == set(range(audit.progress.shards_total))
    for line in shards:
        assert line["audit"] == identifier
        assert line["auditor"] == "distortion"
    for text in service.log.splitlines():
        assert isinstance(json.loads(text), dict), "something is printed past the log"


def test_a_trace_leads_from_the_call_through_the_queue_to_the_shards(
    service: ServiceProcess, spans: Collector, audit: v1.Audit
) -> None:
    """The client's call, the server's answer, the time in the queue and all work are one trace."""
    context = tracing.parse(audit.traceparent)
    assert context is not None
    assert context.sampled
    called_as, create = "AuditService/CreateAudit", "onnx_audit.v1.AuditService/CreateAudit"
    spans.wait_for(context.trace_id, {called_as, create, "queue", "plan", "shard", "merge"})
    found = {(owner, span.name): span for owner, span in spans.trace(context.trace_id)}
    called, answered = found["pipeline", called_as], found["onnx-audit-server", create]
    assert answered.parent_span_id == called.span_id
    assert answered.span_id.hex() == context.span_id
    queue = found["onnx-audit-server", "queue"]
    for name in ("queue", "plan", "shard", "merge"):
        assert found["onnx-audit-server", name].parent_span_id == answered.span_id
    shards = [span for _, span in spans.trace(context.trace_id) if span.name == "shard"]
    assert len(shards) == audit.progress.shards_total
    for shard in shards:
        assert queue.start_time_unix_nano < queue.end_time_unix_nano
        assert queue.end_time_unix_nano <= shard.start_time_unix_nano < shard.end_time_unix_nano
        known = {each.key: each.value for each in shard.attributes}
        assert known["onnx_audit.audit"].string_value == audit.name.partition("/")[2]
        assert known["onnx_audit.auditor"].string_value == "distortion"
    lines = [line for line in service.log_lines() if line.get("trace_id") == context.trace_id]
    assert {"rpc", "audit accepted", "audit started", "task done", "audit ended"} <= {
        line["event"] for line in lines
    }


def test_a_trace_of_the_caller_is_taken_over(service: ServiceProcess) -> None:
    """A valid traceparent is gone on with, a malformed one is replaced; log lines tell them."""
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    given = {"good": f"00-{trace}-00f067aa0ba902b7-00", "bad": f"00-{trace}-00f067aa0ba902b7"}
    with grpc.insecure_channel(service.target) as channel:
        stub = audit_pb2_grpc.AuditServiceStub(channel)
        for name, header in given.items():
            metadata = (("x-request-id", name), ("traceparent", header))
            stub.ListAudits(v1.ListAuditsRequest(), metadata=metadata)
    lines = {line.get("request_id"): line for line in service.log_lines()}
    assert lines["good"]["trace_id"] == trace
    assert lines["good"]["span_id"] != "00f067aa0ba902b7"
    assert lines["bad"]["trace_id"] != trace


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", True),
        ("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-later", True),
        ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more", False),
        ("ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", False),
        ("00-00000000000000000000000000000000-00f067aa0ba902b7-01", False),
        ("00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01", False),
        ("00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01", False),
        ("", False),
    ],
)
def test_traceparents_are_read_as_the_standard_says(text: str, valid: bool) -> None:
    """The W3C's rules, among them its own example."""
    found = tracing.parse(text)
    assert (found is not None) == valid
    if found is not None:
        assert str(found) == "00" + text[2:55]


def test_a_request_id_of_the_caller_is_kept(service: ServiceProcess) -> None:
    """A caller's x-request-id appears in the log and comes back in the trailer."""
    with grpc.insecure_channel(service.target) as channel:
        stub = audit_pb2_grpc.AuditServiceStub(channel)
        request = v1.ListAuditsRequest()
        _, call = stub.ListAudits.with_call(request, metadata=(("x-request-id", "build-77"),))
        assert ("x-request-id", "build-77") in [tuple(pair) for pair in call.trailing_metadata()]
    assert "build-77" in [line.get("request_id") for line in service.log_lines()]


def test_the_process_says_that_it_lives(service: ServiceProcess) -> None:
    """The liveness check answers."""
    with urllib.request.urlopen(f"http://{service.addresses['http']}/healthz") as response:
        assert response.status == 200


def test_health_and_reflection_are_served(service: ServiceProcess) -> None:
    """Standard tools can ask whether every service serves, and what it offers."""
    with grpc.insecure_channel(service.target) as channel:
        services = ProtoReflectionDescriptorDatabase(channel).get_services()
        ours = [name for name in services if name.startswith("onnx_audit.v1.")]
        assert len(ours) == 4
        health: Any = health_pb2_grpc.HealthStub(channel)  # its stubs lack the methods
        for name in ["", *ours]:
            answer = health.Check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_every_query_returns_data(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    service: ServiceProcess,
    client: Client,
    audit: v1.Audit,
) -> None:
    """A Prometheus that scrapes a working service has data for every panel and every alert."""
    program("prometheus")
    with device_exporter(monkeypatch) as gpu:
        targets = {"onnx-audit-server": [service.addresses["http"]], "onnx-audit-gpu": [gpu]}
        with prometheus(tmp_path, targets) as server:
            assert server.wait_for(['up{job="onnx-audit-server"} == 1'], 20) == []
            check_queries(server, client, audit)


def check_queries(server: Prometheus, client: Client, audit: v1.Audit) -> None:
    probes = client.upload_probes(models.probes(400, 16))
    again = client.audit(audit.model, probes, auditors=LONGER)
    assert list(client.watch(again))
    with pytest.raises(NotFound):
        client.get_audit("audits/none")
    compared = [part for alert in alerts() for part in operands(alert["expr"])]
    # All that happened while it scraped is to be within what Grafana's rate interval stands for.
    shown = [query.replace("$__rate_interval", "5m") for query in dashboard.queries()]
    assert server.wait_for([*compared, *shown, *scaling()], 30) == []
    groups = server.get("rules")["groups"]
    assert [rule for group in groups for rule in group["rules"] if rule["health"] != "ok"] == []
    total = 'sum(onnx_audit_audits_ended_total{state="succeeded"})'
    assert [sample["value"][1] for sample in server.query(total)] == ["2"]
    # The longer audit's four shards wait for the only slot, all of them until it takes the first.
    most = server.query("max_over_time(onnx_audit_tasks_waiting[5m])")
    waited = {each["metric"]["device"]: int(each["value"][1]) for each in most}
    assert waited in [{"cpu": count, "cuda": 0} for count in (1, 2, 3, 4)]
    firing = {alert["labels"]["alertname"] for alert in server.get("alerts")["alerts"]}
    assert not firing & {"OnnxAuditNoWorkers", "OnnxAuditRpcFaults", "OnnxAuditTargetDown"}


def test_promtool_finds_nothing_to_mend(service: ServiceProcess, audit: v1.Audit) -> None:
    """Names, types and help texts are as Prometheus wants them."""
    assert audit.name
    with urllib.request.urlopen(f"http://{service.addresses['http']}/metrics") as response:
        exported = response.read()
    command = [program("promtool"), "check", "metrics"]
    checked = subprocess.run(command, input=exported, capture_output=True, check=False)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")
