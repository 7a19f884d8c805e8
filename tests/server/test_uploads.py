"""BlobService over real gRPC: what is stored, what is kept of a broken upload, what is refused."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from typing import cast

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from tests.service import ServiceProcess

from onnx_audit import v1
from onnx_audit.v1 import blob_pb2_grpc

CHUNK = 1 << 20


@pytest.fixture(scope="module")
def blobs(channel: grpc.Channel) -> blob_pb2_grpc.BlobServiceStub:
    """The bare service."""
    return blob_pb2_grpc.BlobServiceStub(channel)


def content_of(size: int) -> tuple[bytes, str]:
    content = os.urandom(size)
    return content, hashlib.sha256(content).hexdigest()


def chunks(content: bytes, digest: str, start: int = 0) -> Iterator[v1.WriteRequest]:
    for offset in range(start, len(content), CHUNK):
        data = content[offset : offset + CHUNK]
        yield v1.WriteRequest(
            sha256=digest,
            write_offset=offset,
            data=data,
            finish_write=offset + len(data) == len(content),
        )


def reason(error: grpc.RpcError) -> str:
    # Errors of the synchronous API are calls too, which their type does not say.
    status = rpc_status.from_call(cast("grpc.Call", error))
    assert status is not None
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert info.domain == "onnx-audit"
    return str(info.reason)


def test_a_blob_comes_back_as_it_was_sent(blobs: blob_pb2_grpc.BlobServiceStub) -> None:
    """Upload, look up, and download whole and in part."""
    content, digest = content_of(5 * CHUNK + 7)
    missing = blobs.FindMissing(v1.FindMissingRequest(sha256=[digest])).missing_sha256
    assert list(missing) == [digest]
    written = blobs.Write(chunks(content, digest))
    assert written == v1.WriteResponse(committed_size=len(content), complete=True)
    assert not blobs.FindMissing(v1.FindMissingRequest(sha256=[digest])).missing_sha256
    read = b"".join(part.data for part in blobs.Read(v1.ReadRequest(sha256=digest)))
    assert read == content
    part = v1.ReadRequest(sha256=digest, read_offset=CHUNK - 3, read_limit=10)
    assert b"".join(p.data for p in blobs.Read(part)) == content[CHUNK - 3 : CHUNK + 7]


def test_a_broken_upload_goes_on_where_it_stopped(blobs: blob_pb2_grpc.BlobServiceStub) -> None:
    """After a stream that breaks half-way the server holds its part, and takes only the rest."""
    content, digest = content_of(6 * CHUNK)

    def breaking() -> Iterator[v1.WriteRequest]:
        query = v1.QueryWriteStatusRequest(sha256=digest)
        for number, request in enumerate(chunks(content, digest)):
            if number == 3:
                # What has not left this machine yet would be lost with the line.
                while blobs.QueryWriteStatus(query).committed_size < 3 * CHUNK:
                    time.sleep(0.01)
                raise ConnectionError("the line went dead")
            yield request

    with pytest.raises(grpc.RpcError):
        blobs.Write(breaking())
    held = wait_for_release(blobs, digest)
    assert not held.complete
    assert held.committed_size == 3 * CHUNK
    written = blobs.Write(chunks(content, digest, held.committed_size))
    assert written.complete
    assert b"".join(p.data for p in blobs.Read(v1.ReadRequest(sha256=digest))) == content


def wait_for_release(
    blobs: blob_pb2_grpc.BlobServiceStub, digest: str
) -> v1.QueryWriteStatusResponse:
    """The status once it has stopped changing: the server learns of a broken line a bit later."""
    last, status = -1, blobs.QueryWriteStatus(v1.QueryWriteStatusRequest(sha256=digest))
    while status.committed_size != last:
        time.sleep(0.2)
        last = status.committed_size
        status = blobs.QueryWriteStatus(v1.QueryWriteStatusRequest(sha256=digest))
    return status


def test_a_broken_upload_survives_a_killed_server(service: ServiceProcess) -> None:
    """What the server acknowledged as its part is there after kill -9 and a restart."""
    content, digest = content_of(4 * CHUNK)
    with ServiceProcess(service.data.parent / "killed") as process:
        with grpc.insecure_channel(process.target) as channel:
            blobs = blob_pb2_grpc.BlobServiceStub(channel)
            half = list(chunks(content, digest))[:2]
            assert not blobs.Write(iter(half)).complete
        process.kill()
        process.start()
        with grpc.insecure_channel(process.target) as channel:
            blobs = blob_pb2_grpc.BlobServiceStub(channel)
            status = blobs.QueryWriteStatus(v1.QueryWriteStatusRequest(sha256=digest))
            assert status.committed_size == 2 * CHUNK
            assert blobs.Write(chunks(content, digest, 2 * CHUNK)).complete


def test_a_wrong_digest_leaves_nothing(
    service: ServiceProcess, blobs: blob_pb2_grpc.BlobServiceStub
) -> None:
    """Content that is not what was announced is refused and dropped."""
    content, _ = content_of(100)
    _, digest = content_of(100)
    with pytest.raises(grpc.RpcError) as caught:
        blobs.Write(chunks(content, digest))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert reason(caught.value) == "DIGEST_MISMATCH"
    status = blobs.QueryWriteStatus(v1.QueryWriteStatusRequest(sha256=digest))
    assert status == v1.QueryWriteStatusResponse()
    assert not list(service.data.glob(f"**/{digest}*"))


def test_a_wrong_offset_is_answered_with_the_right_one(
    blobs: blob_pb2_grpc.BlobServiceStub,
) -> None:
    """A gap is OUT_OF_RANGE and names the byte to go on from."""
    content, digest = content_of(3 * CHUNK)
    with pytest.raises(grpc.RpcError) as caught:
        blobs.Write(chunks(content, digest, CHUNK))
    assert caught.value.code() == grpc.StatusCode.OUT_OF_RANGE
    assert reason(caught.value) == "WRITE_OFFSET_MISMATCH"


def test_a_known_blob_is_accepted_without_its_content(
    blobs: blob_pb2_grpc.BlobServiceStub,
) -> None:
    """Writing what is there already ends at once, whatever is sent."""
    content, digest = content_of(CHUNK)
    blobs.Write(chunks(content, digest))
    again = blobs.Write(iter([v1.WriteRequest(sha256=digest, data=b"x", finish_write=True)]))
    assert again == v1.WriteResponse(committed_size=len(content), complete=True)


@pytest.mark.parametrize("digest", ["", "abc", "A" * 64, "../" + "a" * 61, "g" * 64])
def test_malformed_digests_are_refused(blobs: blob_pb2_grpc.BlobServiceStub, digest: str) -> None:
    """No text but a digest reaches the file system."""
    for call in (
        lambda: blobs.Write(iter([v1.WriteRequest(sha256=digest, data=b"x")])),
        lambda: blobs.QueryWriteStatus(v1.QueryWriteStatusRequest(sha256=digest)),
        lambda: list(blobs.Read(v1.ReadRequest(sha256=digest))),
        lambda: blobs.FindMissing(v1.FindMissingRequest(sha256=[digest])),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            call()
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_chunks_beyond_two_mebibytes_are_refused(blobs: blob_pb2_grpc.BlobServiceStub) -> None:
    """One message may carry 2 MiB and no more."""
    content, digest = content_of((2 << 20) + 1)
    request = v1.WriteRequest(sha256=digest, data=content, finish_write=True)
    with pytest.raises(grpc.RpcError) as caught:
        blobs.Write(iter([request]))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_an_unknown_blob_cannot_be_read(blobs: blob_pb2_grpc.BlobServiceStub) -> None:
    """Reading what nobody stored is NOT_FOUND."""
    with pytest.raises(grpc.RpcError) as caught:
        list(blobs.Read(v1.ReadRequest(sha256="0" * 64)))
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
