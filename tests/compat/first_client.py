"""What a client of the first release says to a server, in the messages that it knows.

Run in a process of its own with the first release's generated code (the archive beside this file)
as its only `onnx_audit`; takes the server's address, a model and a probe set, and prints what it
found as JSON.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc

import onnx_audit
from onnx_audit import v1
from onnx_audit.v1 import audit_pb2_grpc, blob_pb2_grpc, model_pb2_grpc, probe_set_pb2_grpc

CHUNK = 1000


def upload(stub: Any, path: Path) -> str:
    """Uploads a file in two streams, the second from where the first one stopped."""
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()

    def chunks(start: int, end: int) -> Iterator[Any]:
        for offset in range(start, end, CHUNK):
            data = content[offset : min(offset + CHUNK, end)]
            last = offset + len(data) == len(content)
            yield v1.WriteRequest(sha256=digest, write_offset=offset, data=data, finish_write=last)

    middle = len(content) // 2
    assert not stub.Write(chunks(0, middle)).complete
    status = stub.QueryWriteStatus(v1.QueryWriteStatusRequest(sha256=digest))
    assert status.committed_size == middle
    assert stub.Write(chunks(middle, len(content))).complete
    missing = stub.FindMissing(v1.FindMissingRequest(sha256=[digest, "0" * 64]))
    assert list(missing.missing_sha256) == ["0" * 64]
    read = b"".join(part.data for part in stub.Read(v1.ReadRequest(sha256=digest)))
    assert read == content
    return digest


def main() -> None:
    """Does what a client does from an upload to a verdict."""
    target, model_file, probes_file = sys.argv[1:]
    with grpc.insecure_channel(target) as channel:
        blobs: Any = blob_pb2_grpc.BlobServiceStub(channel)
        audits: Any = audit_pb2_grpc.AuditServiceStub(channel)
        models: Any = model_pb2_grpc.ModelServiceStub(channel)
        probe_sets: Any = probe_set_pb2_grpc.ProbeSetServiceStub(channel)
        onnx_file = v1.ModelFile(sha256=upload(blobs, Path(model_file)))
        model = models.CreateModel(
            v1.CreateModelRequest(model=v1.Model(onnx_file=onnx_file, display_name="first"))
        )
        probes = probe_sets.CreateProbeSet(
            v1.CreateProbeSetRequest(probe_set=v1.ProbeSet(sha256=upload(blobs, Path(probes_file))))
        )
        policy = v1.Policy(gates=[v1.Gate(id="parity", expression="report.parity.passed")])
        wanted = v1.Audit(
            model=model.name,
            probe_set=probes.name,
            auditors=v1.AuditorConfigs(distortion=v1.DistortionConfig(budget=20)),
            policy=policy,
        )
        audit = audits.CreateAudit(v1.CreateAuditRequest(audit=wanted, request_id="first"))
        events = list(audits.WatchAudit(v1.WatchAuditRequest(name=audit.name)))
        ended = audits.GetAudit(v1.GetAuditRequest(name=audit.name))
        name = f"{audit.name}/report"
        report = audits.GetReport(v1.GetReportRequest(name=name))
        page = audits.RenderReport(
            v1.RenderReportRequest(name=name, format=v1.REPORT_FORMAT_MARKDOWN)
        )
        result = audits.EvaluatePolicy(v1.EvaluatePolicyRequest(name=name, policy=policy))
        listed = audits.ListAudits(v1.ListAuditsRequest(model=model.name))
        try:
            audits.CancelAudit(v1.CancelAuditRequest(name=audit.name))
        except grpc.RpcError as error:
            refused = error.code().name
    found = {
        "code": onnx_audit.__file__,
        "sequences": [event.sequence for event in events],
        "state": v1.AuditState.Name(ended.state),
        "verdict": v1.Verdict.Name(ended.verdict),
        "digests": [ended.report_digest, report.digest],
        "probes": report.distortion.norms[0].confirmed,
        "page": len(page.content),
        "result": v1.Verdict.Name(result.verdict),
        "listed": audit.name in [each.name for each in listed.audits],
        "refused": refused,
    }
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
