"""Both clients against a real gRPC server that breaks on demand."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import time
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tests.client.clients import FAST, open_client
from tests.client.fake_service import UNAVAILABLE, FakeService, rich_status
from tests.client.models import write_model

from onnx_audit import errors, v1
from onnx_audit.files import CHUNK_BYTES
from onnx_audit.status import from_rpc_error

BIG = 3 * CHUNK_BYTES + 12345


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """An ONNX file of several chunks."""
    return write_model(tmp_path / "big.onnx", padding=BIG)


def events(*states: v1.AuditState.ValueType) -> list[v1.AuditEvent]:
    """Notices, then the given states, numbered from 1."""
    rows = [v1.AuditEvent(notice=v1.AuditEvent.Notice(message=f"n{i}")) for i in range(7)]
    rows += [
        v1.AuditEvent(state_changed=v1.AuditEvent.StateChanged(state=state)) for state in states
    ]
    for number, row in enumerate(rows, start=1):
        row.sequence = number
    return rows


def test_broken_upload_resumes_at_the_committed_offset(
    service: FakeService, client: Any, model: Path
) -> None:
    """After each break the client goes on where the stored part ends and sends no byte twice."""
    service.break_write_after = [CHUNK_BYTES, CHUNK_BYTES]
    uploaded = client.upload_model(model)
    assert service.write_offsets == [0, CHUNK_BYTES, 2 * CHUNK_BYTES]
    assert sum(service.chunk_sizes) == model.stat().st_size
    assert max(service.chunk_sizes) <= CHUNK_BYTES
    assert service.blobs[uploaded.onnx_file.sha256] == model.read_bytes()


def test_upload_of_an_earlier_process_is_continued(
    service: FakeService, client: Any, model: Path
) -> None:
    """A stored part that somebody left behind is not sent again."""
    content = model.read_bytes()
    service.partial[hashlib.sha256(content).hexdigest()] = bytearray(content[:1000])
    client.upload_model(model)
    assert service.write_offsets == [1000]


def test_offset_mismatch_is_cured_by_asking(service: FakeService, client: Any, model: Path) -> None:
    """When the stored part is not what it was said to be, the client asks anew and goes on."""
    mismatch = rich_status(
        grpc.StatusCode.OUT_OF_RANGE, "somebody was faster", reason="WRITE_OFFSET_MISMATCH"
    )
    service.faults["Write"] = [mismatch]
    uploaded = client.upload_model(model)
    assert service.blobs[uploaded.onnx_file.sha256] == model.read_bytes()


def test_known_content_is_not_sent_again(service: FakeService, client: Any, model: Path) -> None:
    """The second upload of a file makes no Write, and still reports complete progress."""
    first = client.upload_model(model)
    service.calls.clear()
    seen: list[tuple[str, int, int]] = []
    second = client.upload_model(model, progress=lambda *step: seen.append(step))
    assert second.name == first.name
    assert service.calls == ["FindMissing", "CreateModel"]
    assert seen == [("big.onnx", model.stat().st_size, model.stat().st_size)]


def test_progress_grows_to_the_whole(client: Any, model: Path) -> None:
    """Progress of an upload rises and ends at the file's length."""
    seen: list[int] = []
    client.upload_model(model, progress=lambda _, sent, __: seen.append(sent))
    assert seen == sorted(set(seen))
    assert seen[-1] == model.stat().st_size


def test_upload_without_progress_is_given_up(
    service: FakeService, client: Any, model: Path
) -> None:
    """An upload that breaks again and again without getting on ends after the allowed attempts."""
    service.faults["Write"] = [UNAVAILABLE] * 100
    with pytest.raises(errors.Unavailable):
        client.upload_model(model)
    assert service.calls.count("Write") == FAST.attempts


def test_damaged_upload_is_an_error(service: FakeService, client: Any, model: Path) -> None:
    """A digest mismatch is reported, not retried."""
    content = model.read_bytes()
    service.partial[hashlib.sha256(content).hexdigest()] = bytearray(b"x" * 10)
    with pytest.raises(errors.InvalidRequest) as caught:
        client.upload_model(model)
    assert caught.value.reason == "DIGEST_MISMATCH"
    assert service.calls.count("Write") == 1


def test_external_data_is_uploaded_by_location(
    service: FakeService, client: Any, tmp_path: Path
) -> None:
    """Files beside the model are blobs of their own under the locations that the model names."""
    path = write_model(tmp_path / "m.onnx", external=["w/a.bin", "b.bin"])
    uploaded = client.upload_model(path, display_name="scorer", tags={"kind": "mlp"})
    assert uploaded.display_name == "scorer"
    assert dict(uploaded.tags) == {"kind": "mlp"}
    assert uploaded.onnx_file.path == ""
    assert {file.path: service.blobs[file.sha256] for file in uploaded.external_files} == {
        location: (tmp_path / location).read_bytes() for location in ("b.bin", "w/a.bin")
    }


def test_retries_are_bounded(service: FakeService, client: Any) -> None:
    """A service that stays unavailable gets as many attempts as the policy allows."""
    service.faults["GetAudit"] = [UNAVAILABLE] * 100
    with pytest.raises(errors.Unavailable) as caught:
        client.get_audit("audits/1")
    assert caught.value.reason == "DRAINING"
    assert service.calls == ["GetAudit"] * FAST.attempts


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_unreachable_service_is_unavailable(kind: str) -> None:
    """A refused connection is Unavailable, without a reason of the service's own."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        client = open_client(kind, f"127.0.0.1:{unused.getsockname()[1]}")
        with pytest.raises(errors.Unavailable) as caught:
            client.get_audit("audits/1")
        client.close()
    assert caught.value.reason == ""


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, errors.InvalidRequest),
        (grpc.StatusCode.OUT_OF_RANGE, errors.InvalidRequest),
        (grpc.StatusCode.NOT_FOUND, errors.NotFound),
        (grpc.StatusCode.ALREADY_EXISTS, errors.Conflict),
        (grpc.StatusCode.ABORTED, errors.Conflict),
        (grpc.StatusCode.FAILED_PRECONDITION, errors.FailedPrecondition),
        (grpc.StatusCode.UNIMPLEMENTED, errors.Unimplemented),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, errors.ResourceExhausted),
        (grpc.StatusCode.DEADLINE_EXCEEDED, errors.DeadlineExceeded),
        (grpc.StatusCode.CANCELLED, errors.Cancelled),
        (grpc.StatusCode.DATA_LOSS, errors.DataLoss),
        (grpc.StatusCode.INTERNAL, errors.InternalError),
        (grpc.StatusCode.PERMISSION_DENIED, errors.PermissionDenied),
    ],
)
def test_codes_become_exceptions_and_are_not_retried(
    service: FakeService, client: Any, code: grpc.StatusCode, kind: type[errors.ServiceError]
) -> None:
    """Each status code has its exception, and only UNAVAILABLE is tried again."""
    service.faults["GetAudit"] = [rich_status(code, "no")]
    with pytest.raises(kind) as caught:
        client.get_audit("1")
    assert type(caught.value) is kind
    assert caught.value.code == code.name
    assert service.calls == ["GetAudit"]


def test_a_call_that_a_stopping_server_drops_is_repeated() -> None:
    """GRPC then answers CANCELLED, without a word of the service."""

    class Dropped(grpc.RpcError):
        def code(self) -> grpc.StatusCode:
            return grpc.StatusCode.CANCELLED

        def details(self) -> str:
            return "CANCELLED"

        def trailing_metadata(self) -> tuple[()]:
            return ()

    assert isinstance(from_rpc_error(Dropped()), errors.Unavailable)


def test_details_of_an_error_are_read(service: FakeService, client: Any) -> None:
    """Reason, metadata and field violations arrive, and the text names every field."""
    service.faults["CreateAudit"] = [
        rich_status(
            grpc.StatusCode.INVALID_ARGUMENT,
            "two fields are wrong",
            reason="INVALID_FIELD",
            metadata={"limit": "100000"},
            fields={"audit.seed": "must not be negative", "audit.timeout": "too long"},
        )
    ]
    with pytest.raises(errors.InvalidRequest) as caught:
        client.audit("models/" + "0" * 64, "probes/" + "0" * 64)
    error = caught.value
    assert (error.reason, error.metadata) == ("INVALID_FIELD", {"limit": "100000"})
    assert error.field_violations == (
        errors.FieldViolation("audit.seed", "must not be negative"),
        errors.FieldViolation("audit.timeout", "too long"),
    )
    assert "audit.timeout: too long" in str(error)


def test_retry_info_is_honoured(service: FakeService, client: Any, monkeypatch: Any) -> None:
    """A busy service that says when to come back is asked again, not before that."""
    slept: list[float] = []
    sleep = asyncio.sleep

    async def record(seconds: float) -> None:
        slept.append(seconds)
        await sleep(0)

    monkeypatch.setattr(time, "sleep", slept.append)
    monkeypatch.setattr(asyncio, "sleep", record)
    busy = rich_status(
        grpc.StatusCode.RESOURCE_EXHAUSTED, "busy", reason="BUSY", retry_seconds=17.5
    )
    service.faults["ListModels"] = [busy]
    assert list(client.models()) == []
    assert 17.5 in slept


def test_request_id_is_the_same_over_retries(service: FakeService, client: Any) -> None:
    """When the answer to CreateAudit is lost, the repeated call returns the one audit started."""
    service.lose_responses = True
    names = ("models/" + "1" * 64, "probes/" + "2" * 64)
    audit = client.audit(*names, seed=7, timeout=1.5, auditors=["distortion", "lipschitz"])
    sent = [request for request in service.requests if isinstance(request, v1.CreateAuditRequest)]
    assert len(sent) == 2
    assert sent[0] == sent[1]
    assert list(service.audits) == [audit.name]
    assert (audit.model, audit.probe_set, audit.seed) == (*names, 7)
    assert audit.timeout.ToMilliseconds() == 1500
    assert audit.auditors.HasField("lipschitz")
    assert not audit.auditors.HasField("units")
    service.lose_responses = False
    assert client.audit(*names).name != audit.name


def test_audit_uploads_what_it_is_given(service: FakeService, client: Any, model: Path) -> None:
    """A path and an array become a model and a probe set before the audit is created."""
    audit = client.audit(model, np.zeros((2, 3), np.float32))
    assert audit.model in service.models
    assert audit.probe_set in service.sets


def test_unknown_auditor_is_refused_before_any_upload(
    service: FakeService, client: Any, model: Path
) -> None:
    """A misspelt auditor costs no upload, and the error names the nearest one."""
    with pytest.raises(errors.ConfigError, match="did you mean distortion"):
        client.audit(model, np.zeros((2, 3), np.float32), auditors=["distorsion"])
    assert service.calls == []


def test_watch_resumes_without_gaps_or_duplicates(service: FakeService, client: Any) -> None:
    """Broken watches go on by sequence number; each event comes once and in order."""
    service.events = events(v1.AUDIT_STATE_RUNNING, v1.AUDIT_STATE_SUCCEEDED)
    audit = client.audit("models/" + "1" * 64, "probes/" + "2" * 64)
    service.events_per_watch = [3, 0, 2, 4]
    seen = [event.sequence for event in client.watch(audit)]
    assert seen == list(range(1, 10))
    resumed = [r.after_sequence for r in service.requests if isinstance(r, v1.WatchAuditRequest)]
    assert resumed == [0, 3, 3, 4, 7]


def test_watch_does_not_skip_a_missing_event(service: FakeService, client: Any) -> None:
    """A gap in the numbers is an error in the end, never passed over."""
    service.events = events(v1.AUDIT_STATE_SUCCEEDED)
    audit = client.audit("models/" + "1" * 64, "probes/" + "2" * 64)
    del service.events[4]
    with pytest.raises(errors.Unavailable, match="event 6 followed event 4"):
        list(client.watch(audit))


def test_watch_from_the_end_of_an_ended_audit_ends(service: FakeService, client: Any) -> None:
    """Watching after the last event of an ended audit yields nothing and returns."""
    service.events = events(v1.AUDIT_STATE_SUCCEEDED)
    audit = client.audit("models/" + "1" * 64, "probes/" + "2" * 64)
    assert list(client.watch(audit, after_sequence=8)) == []


def test_watch_of_an_unknown_audit_fails(client: Any) -> None:
    """There is nothing to wait for, and the error says so."""
    with pytest.raises(errors.NotFound) as caught:
        list(client.watch("audits/none"))
    assert caught.value.metadata == {"resource": "audits/none"}


def test_wait_returns_a_success_and_raises_otherwise(service: FakeService, client: Any) -> None:
    """`wait` returns the audit that succeeded; failure and cancellation are exceptions."""
    service.events = events(v1.AUDIT_STATE_SUCCEEDED)
    names = ("models/" + "1" * 64, "probes/" + "2" * 64)
    audit = client.audit(*names)
    assert client.wait(audit).state == v1.AUDIT_STATE_SUCCEEDED

    service.events = events(v1.AUDIT_STATE_FAILED)
    stored = service.audits[client.audit(*names).name]
    stored.state = v1.AUDIT_STATE_FAILED
    stored.error.CopyFrom(
        rich_status(
            grpc.StatusCode.FAILED_PRECONDITION,
            "answers differ",
            reason="PARITY_FAILED",
            metadata={"value": "conv1"},
        )
    )
    with pytest.raises(errors.AuditFailed, match="answers differ") as failed:
        client.wait(stored.name)
    assert (failed.value.reason, failed.value.metadata) == ("PARITY_FAILED", {"value": "conv1"})

    service.events = events(v1.AUDIT_STATE_CANCELLED)
    cancelled = client.cancel(client.audit(*names))
    with pytest.raises(errors.AuditCancelled):
        client.wait(cancelled)


def test_lists_go_over_all_pages(service: FakeService, client: Any) -> None:
    """Iterators fetch page after page and keep the filter on each."""
    names = [client.audit("models/" + "1" * 64, "probes/" + "2" * 64).name for _ in range(5)]
    states = [v1.AUDIT_STATE_SUCCEEDED]
    assert [audit.name for audit in client.audits(states=states)] == names
    pages = [r for r in service.requests if isinstance(r, v1.ListAuditsRequest)]
    assert [page.page_token for page in pages] == ["", "2", "4"]
    assert [list(page.states) for page in pages] == [states] * 3
    client.upload_probes(np.ones((1, 2), np.float32))
    assert [row.sha256 for row in client.probe_sets()] == list(service.blobs)


def test_download_resumes_and_checks_the_digest(
    service: FakeService, client: Any, tmp_path: Path
) -> None:
    """A broken download goes on at its offset; damaged bytes leave no file behind."""
    content = bytes(range(256)) * 40
    digest = hashlib.sha256(content).hexdigest()
    service.blobs[digest] = content
    service.break_read_after = [3000, 2000]
    blob = v1.BlobRef(sha256=digest, size_bytes=len(content))
    path = client.download(blob, tmp_path / "out" / "artefact.bin")
    assert path.read_bytes() == content
    offsets = [r.read_offset for r in service.requests if isinstance(r, v1.ReadRequest)]
    assert offsets == [0, 3000, 5000]

    service.blobs[digest] = content[:-1] + b"!"
    with pytest.raises(errors.DataLoss, match="nothing was kept"):
        client.download(blob, tmp_path / "out" / "damaged.bin")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["artefact.bin"]


def test_report_is_found_by_audit(service: FakeService, client: Any) -> None:
    """The report of an audit is asked for by the audit's name, id or message."""
    service.reports["audits/1/report"] = v1.Report(digest="d")
    for audit in ("audits/1", "1", "audits/1/report", v1.Audit(name="audits/1")):
        assert client.report(audit).digest == "d"
