"""Any calls in any order, to a real server: each gets a defined answer, and nothing is lost."""

from __future__ import annotations

import hashlib
import itertools
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest
from google.protobuf import message_factory
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test
from tests import models
from tests.fuzz.messages import messages
from tests.service import ServiceProcess

from onnx_audit import v1
from onnx_audit.v1 import (
    audit_pb2,
    audit_pb2_grpc,
    blob_pb2,
    blob_pb2_grpc,
    model_pb2,
    probe_set_pb2,
)

EXAMPLES = int(os.environ.get("ONNX_AUDIT_FUZZ_EXAMPLES", "150"))
"""Runs, each of some dozens of calls."""
CHUNK = 2 << 20
"""Most bytes of a message."""
SECONDS = 30.0
"""Longest wait for an answer."""
FAULTS = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DEADLINE_EXCEEDED)
METHODS = [
    (f"/{service.full_name}/{method.name}", method)
    for file in (audit_pb2, blob_pb2, model_pb2, probe_set_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
    if not method.client_streaming
]
SIZES = (1, 1000, CHUNK, CHUNK + 5, 2 * CHUNK + 1)
_numbers = itertools.count()


class Target(NamedTuple):
    """What is called.

    Attributes:
        channel: To the server.
        texts: Names of what the server has.
        model: A model's name.
        probe_set: A probe set's name.
    """

    channel: grpc.Channel
    texts: list[str]
    model: str
    probe_set: str


class Calls(RuleBasedStateMachine):
    """Keeps by hand what the server has to hold of each upload."""

    target: Target

    def __init__(self) -> None:
        super().__init__()
        self.blobs = blob_pb2_grpc.BlobServiceStub(self.target.channel)
        self.audits = audit_pb2_grpc.AuditServiceStub(self.target.channel)
        # No two runs upload the same, or one would find what the other has left.
        salt = f"{os.getpid()} {next(_numbers)} ".encode()
        self.contents = [(salt * (size // len(salt) + 1))[-size:] + salt for size in SIZES]
        self.digests = [hashlib.sha256(content).hexdigest() for content in self.contents]
        self.staged: dict[str, bytes] = {}
        self.stored: dict[str, bytes] = {}

    @rule(
        number=st.integers(0, len(SIZES) - 1),
        start=st.sampled_from(["anew", "resume", "resume", "resume", "gap", "negative"]),
        sizes=st.lists(st.sampled_from([0, 1, 1000, CHUNK, CHUNK, CHUNK + 1]), max_size=4),
        wrong=st.sampled_from(["", "", "", "", "content", "offset", "digest"]),
        finish=st.booleans(),
    )
    def write(self, number: int, start: str, sizes: list[int], wrong: str, finish: bool) -> None:
        """Sends a stream of chunks, right or not; foresees the answer."""
        content, digest = self.contents[number], self.digests[number]
        held = len(self.staged.get(digest, b""))
        begin = {"anew": 0, "resume": held, "gap": held + 1, "negative": -1}[start]
        at, requests = max(0, begin), []
        for size in sizes:
            data = content[at : at + size] if wrong != "content" else b"?" * size
            requests.append(v1.WriteRequest(sha256=digest, write_offset=at, data=data))
            at += len(data)
        requests = requests or [v1.WriteRequest(sha256=digest, write_offset=at)]
        requests[0].write_offset = begin
        requests[-1].finish_write = finish
        if wrong == "offset":
            requests[-1].write_offset += 1
        if wrong == "digest":
            requests[0].sha256 = digest.upper() + "/"
        expected = self._foresee(requests)
        assert outcome(lambda: self._write(requests))[0] == expected

    def _foresee(self, requests: list[Any]) -> object:
        """The answer to a stream, by the words of the schema; notes what is then held."""
        digest = requests[0].sha256
        if digest not in self.digests:
            return grpc.StatusCode.INVALID_ARGUMENT
        if digest in self.stored:
            return v1.WriteResponse(committed_size=len(self.stored[digest]), complete=True)
        held = b"" if requests[0].write_offset == 0 else self.staged.get(digest, b"")
        refused = None
        for request in requests:
            if request.write_offset != len(held):
                refused = grpc.StatusCode.OUT_OF_RANGE
            elif len(request.data) > CHUNK:
                refused = grpc.StatusCode.INVALID_ARGUMENT
            if refused:
                break
            held += request.data
        self.staged[digest] = held
        if refused or not requests[-1].finish_write:
            return refused or v1.WriteResponse(committed_size=len(held), complete=False)
        del self.staged[digest]
        if hashlib.sha256(held).hexdigest() != digest:
            return grpc.StatusCode.INVALID_ARGUMENT
        self.stored[digest] = held
        return v1.WriteResponse(committed_size=len(held), complete=True)

    def _write(self, requests: list[Any]) -> Any:
        """Sends a stream, again while the one before is still being cleaned up after."""
        end = time.monotonic() + SECONDS
        while True:
            try:
                return self.blobs.Write(iter(requests), timeout=SECONDS)
            except grpc.RpcError as error:
                if error.code() != grpc.StatusCode.UNAVAILABLE or time.monotonic() > end:
                    raise
                time.sleep(0.05)

    @rule(number=st.integers(0, len(SIZES) - 1), sent=st.integers(1, 3))
    def break_off(self, number: int, sent: int) -> None:
        """A line that goes dead in the middle: what is held is the beginning of what was sent."""
        content, digest = self.contents[number], self.digests[number]
        if digest in self.stored:
            return

        def broken() -> Iterator[Any]:
            for part in range(sent):
                at = part * 1000
                yield v1.WriteRequest(sha256=digest, write_offset=at, data=content[at : at + 1000])
            raise ConnectionError("the line went dead")

        with pytest.raises(grpc.RpcError):
            self.blobs.Write(broken(), timeout=SECONDS)
        # A stream that changes nothing, which is let in once the broken one has let go.
        with pytest.raises(grpc.RpcError) as caught:
            self._write([v1.WriteRequest(sha256=digest, write_offset=1 << 40)])
        assert caught.value.code() == grpc.StatusCode.OUT_OF_RANGE
        held = self.blobs.QueryWriteStatus(v1.QueryWriteStatusRequest(sha256=digest))
        before = self.staged.get(digest, b"")
        kept = [before, *(content[: 1000 * count] for count in range(sent + 1))]
        fitting = [each for each in kept if len(each) == held.committed_size]
        assert fitting
        # Where lengths agree only what is sent next tells which it was; begin anew then.
        self.staged[digest] = fitting[-1]
        if len(set(fitting)) > 1:
            self.write(number, "anew", [1], "", finish=False)

    @rule(number=st.integers(0, len(SIZES) - 1))
    def look(self, number: int) -> None:
        """Status, and whether it is missing."""
        digest = self.digests[number]
        status = self.blobs.QueryWriteStatus(v1.QueryWriteStatusRequest(sha256=digest))
        whole = digest in self.stored
        held = self.stored[digest] if whole else self.staged.get(digest, b"")
        assert status == v1.QueryWriteStatusResponse(committed_size=len(held), complete=whole)
        asked = self.digests
        missing = self.blobs.FindMissing(v1.FindMissingRequest(sha256=asked)).missing_sha256
        assert list(missing) == [each for each in asked if each not in self.stored]

    @rule(
        number=st.integers(0, len(SIZES) - 1),
        start=st.integers(-1, CHUNK + 2000),
        limit=st.sampled_from([0, 1, 1000, -1, 2**62]),
    )
    def read(self, number: int, start: int, limit: int) -> None:
        """A range."""
        digest = self.digests[number]
        request = v1.ReadRequest(sha256=digest, read_offset=start, read_limit=limit)
        whole = self.stored.get(digest)
        found, _ = outcome(lambda: b"".join(part.data for part in self.blobs.Read(request)))
        if whole is None:
            assert found == grpc.StatusCode.NOT_FOUND
        elif limit < 0 or not 0 <= start <= len(whole):
            assert found == grpc.StatusCode.INVALID_ARGUMENT
        else:
            assert found == whole[start : start + limit if limit else None]

    @rule(data=st.data(), method=st.sampled_from(METHODS))
    def call_anything(self, data: st.DataObject, method: tuple[str, Any]) -> None:
        """Any request to any method."""
        name, descriptor = method
        kind = message_factory.GetMessageClass(descriptor.input_type)
        request = data.draw(messages(kind, self.target.texts))
        self._call(name, descriptor, request)

    @rule(data=st.data(), request_id=st.sampled_from(["", "", "again", "\0", "ÿ"]))
    def create_audit(self, data: st.DataObject, request_id: str) -> None:
        """An audit of what is there, with anything else in its fields; it can be looked up."""
        audit = data.draw(messages(v1.Audit, self.target.texts))
        audit.model, audit.probe_set = self.target.model, self.target.probe_set
        request = v1.CreateAuditRequest(audit=audit, request_id=request_id)
        made, told = outcome(lambda: self.audits.CreateAudit(request, timeout=SECONDS))
        assert made not in FAULTS, (made, told, request)
        if isinstance(made, v1.Audit):
            found = self.audits.GetAudit(v1.GetAuditRequest(name=made.name), timeout=SECONDS)
            assert found == made
            self.target.texts[-1] = made.name

    def _call(self, name: str, descriptor: Any, request: Any) -> None:
        """Calls a method; sees that the answer is a defined one."""
        answer = message_factory.GetMessageClass(descriptor.output_type).FromString
        encode = type(request).SerializeToString
        channel = self.target.channel
        if descriptor.server_streaming:
            # An audit that waits for a worker has nothing more to tell.
            stream = channel.unary_stream(name, encode, answer)
            found, told = outcome(lambda: list(itertools.islice(stream(request, timeout=0.3), 20)))
            assert found == grpc.StatusCode.DEADLINE_EXCEEDED or found not in FAULTS, (
                name, found, told, request
            )  # fmt: skip
        else:
            call = channel.unary_unary(name, encode, answer)
            found, told = outcome(lambda: call(request, timeout=SECONDS))
            assert found not in FAULTS, (name, found, told, request)

    def teardown(self) -> None:
        """Whatever was stored is there."""
        for digest, content in self.stored.items():
            parts = self.blobs.Read(v1.ReadRequest(sha256=digest), timeout=SECONDS)
            assert b"".join(part.data for part in parts) == content


def outcome(call: Callable[[], object]) -> tuple[object, str]:
    """What a call gives: its answer, or the status code and the message of its error."""
    try:
        return call(), ""
    except grpc.RpcError as error:
        return error.code(), str(error.details())


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_any_calls_in_any_order(tmp_path: Path) -> None:
    """Uploads are kept to the byte, and no request is a fault of the server."""
    with ExitStack() as stack:
        service = stack.enter_context(ServiceProcess(tmp_path / "data", "--no-worker"))
        client = stack.enter_context(service.client())
        model = client.upload_model(models.save(models.mlp(), tmp_path / "model.onnx"))
        probe_set = client.upload_probes(models.probes(10, 16))
        channel = stack.enter_context(grpc.insecure_channel(service.target))
        digest = model.name.partition("/")[2]
        texts = [model.name, probe_set.name, digest, f"blobs/{digest}", model.name]
        Calls.target = Target(channel, texts, model.name, probe_set.name)
        run_state_machine_as_test(
            Calls,
            settings=settings(
                max_examples=EXAMPLES,
                stateful_step_count=40,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
        faults = [line for line in service.log_lines() if line.get("level") == "error"]
        assert not faults
