"""Metrics and logs of a real server that has done some work."""

from __future__ import annotations

import json
import urllib.request
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from tests.service import ROOT, ServiceProcess

from onnx_audit import Client, v1
from onnx_audit.errors import NotFound
from onnx_audit.v1 import audit_pb2_grpc

CONFIG = v1.AuditorConfigs(distortion=v1.DistortionConfig(budget=20))


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
    """docs/metrics.md names all metrics, and none that does not exist."""
    assert audit.name
    text = (ROOT / "docs" / "metrics.md").read_text()
    documented = {line.split("`")[1] for line in text.splitlines() if line.startswith("| `")}
    exported = {
        metric.name + ("_total" if metric.type == "counter" else "")
        for metric in scrape(service).values()
    }
    assert documented == exported


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
