"""BlobService: resumable, digest-checked uploads and downloads in chunks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc

from onnx_audit import v1
from onnx_audit.v1 import blob_pb2_grpc
from onnx_audit_server import metrics
from onnx_audit_server.access import identity
from onnx_audit_server.access.ledger import Ledger, Reservation
from onnx_audit_server.access.quotas import ProcessQuotas
from onnx_audit_server.api.chunks import Chunk
from onnx_audit_server.api.names import check_digest, not_found
from onnx_audit_server.errors import ServiceError, invalid
from onnx_audit_server.store.blobs import (
    BlobStore,
    DigestMismatchError,
    Upload,
    UploadBusyError,
)

MAX_CHUNK = 2 << 20
MAX_LOOKUPS = 1000

Context = grpc.aio.ServicerContext[Any, Any]


class BlobServicer(blob_pb2_grpc.BlobServiceServicer):
    """Serves the blob store."""

    def __init__(
        self, blobs: BlobStore, max_bytes: int, quotas: ProcessQuotas, ledger: Ledger
    ) -> None:
        self._blobs = blobs
        self._max_bytes = max_bytes
        self._quotas = quotas
        self._ledger = ledger

    async def FindMissing(
        self, request: v1.FindMissingRequest, context: Context
    ) -> v1.FindMissingResponse:
        """See BlobService."""
        if len(request.sha256) > MAX_LOOKUPS:
            raise invalid(("sha256", f"{len(request.sha256)} digests, at most {MAX_LOOKUPS}"))
        digests = [check_digest(digest, "sha256") for digest in request.sha256]
        sizes = await asyncio.gather(
            *(asyncio.to_thread(self._blobs.hold, digest) for digest in digests)
        )
        missing = [digest for digest, size in zip(digests, sizes, strict=True) if size is None]
        return v1.FindMissingResponse(missing_sha256=missing)

    async def QueryWriteStatus(
        self, request: v1.QueryWriteStatusRequest, context: Context
    ) -> v1.QueryWriteStatusResponse:
        """See BlobService."""
        digest = check_digest(request.sha256, "sha256")
        size = await asyncio.to_thread(self._blobs.hold, digest)
        if size is not None:
            return v1.QueryWriteStatusResponse(committed_size=size, complete=True)
        return v1.QueryWriteStatusResponse(committed_size=self._blobs.staged_size(digest))

    async def Write(
        self, request_iterator: AsyncIterator[Any], context: Context
    ) -> v1.WriteResponse:
        """See BlobService; the interceptor reads the messages as chunks."""
        first: Chunk | None = await anext(request_iterator, None)
        if first is None:
            raise invalid(("sha256", "the stream ended before its first message"))
        digest = check_digest(first.request.sha256, "sha256")
        size = await asyncio.to_thread(self._blobs.hold, digest)
        if size is not None:
            metrics.UPLOADS.labels("known").inc()
            return v1.WriteResponse(committed_size=size, complete=True)
        outcome = "failed"
        try:
            with (
                self._quotas.upload(identity.current()),
                self._blobs.upload(digest) as upload,
            ):
                response = await self._count(upload, first, request_iterator)
            outcome = "complete" if response.complete else "partial"
        except UploadBusyError:
            raise ServiceError(
                "BUSY", "another upload of this blob is under way", retry_after=1.0
            ) from None
        except DigestMismatchError as error:
            raise ServiceError(
                "DIGEST_MISMATCH",
                f"{error}; nothing was kept, upload it anew",
                violations=[("sha256", str(error))],
                metadata={"found": error.found},
            ) from None
        finally:
            metrics.UPLOADS.labels(outcome).inc()
        return response

    async def Read(
        self, request: v1.ReadRequest, context: Context
    ) -> AsyncIterator[v1.ReadResponse]:
        """See BlobService."""
        digest = check_digest(request.sha256, "sha256")
        size = await asyncio.to_thread(self._blobs.size, digest)
        if size is None:
            raise not_found(f"blobs/{digest}")
        start = request.read_offset
        if not 0 <= start <= size or request.read_limit < 0:
            raise ServiceError(
                "INVALID_FIELD",
                f"read_offset {start} or read_limit {request.read_limit} is outside the blob's "
                f"{size} bytes",
                violations=[("read_offset", f"must be from 0 to {size}")],
            )
        end = min(size, start + request.read_limit) if request.read_limit else size
        while start < end:
            stop = min(start + MAX_CHUNK, end)
            yield v1.ReadResponse(
                data=await asyncio.to_thread(self._blobs.read, digest, start, stop)
            )
            start = stop

    async def _count(
        self, upload: Upload, first: Chunk, rest: AsyncIterator[Chunk]
    ) -> v1.WriteResponse:
        """Receives an upload, and counts what is kept of it for whoever brings it."""
        reservation = Reservation(self._ledger, upload.digest, identity.current())
        try:
            response = await self._receive(upload, first, rest, reservation)
        except DigestMismatchError:
            await asyncio.to_thread(reservation.drop)
            raise
        except ServiceError as error:
            if error.reason == "QUOTA_EXCEEDED":
                # What cannot be finished must not take up the room that there is.
                await asyncio.to_thread(self._blobs.drop, upload)
                await asyncio.to_thread(reservation.drop)
            raise
        finally:
            await asyncio.shield(asyncio.to_thread(reservation.settle, upload.size))
        return response

    async def _receive(
        self,
        upload: Upload,
        chunk: Chunk,
        rest: AsyncIterator[Chunk],
        reservation: Reservation,
    ) -> v1.WriteResponse:
        """Appends the chunks of a stream; publishes the blob when the last one has come."""
        loop = asyncio.get_running_loop()
        if chunk.request.write_offset == 0 and upload.size:
            upload.restart()
        while True:
            request, length = chunk.request, len(chunk.data)
            self._check_chunk(upload, request.write_offset, length)
            size = upload.size + length
            if reservation.needs(size):
                await asyncio.to_thread(reservation.grow, size, last=request.finish_write)
            metrics.UPLOADED_BYTES.inc(length)
            appended = loop.run_in_executor(None, upload.append, chunk.data)
            try:
                # The next message comes in while this one is hashed and written.
                following = None if request.finish_write else await anext(rest, None)
            finally:
                await asyncio.shield(appended)
            if request.finish_write:
                await asyncio.to_thread(self._blobs.commit, upload)
                return v1.WriteResponse(committed_size=upload.size, complete=True)
            if following is None:
                return v1.WriteResponse(committed_size=upload.size, complete=False)
            chunk = following

    def _check_chunk(self, upload: Upload, offset: int, length: int) -> None:
        if offset != upload.size:
            raise ServiceError(
                "WRITE_OFFSET_MISMATCH",
                f"write_offset is {offset}, the server holds {upload.size} bytes; "
                "continue from there",
                violations=[("write_offset", f"must be {upload.size}")],
                metadata={"committed_size": str(upload.size)},
            )
        if length > MAX_CHUNK:
            raise invalid(("data", f"{length} bytes, at most {MAX_CHUNK} in a message"))
        if upload.size + length > self._max_bytes:
            raise ServiceError("BLOB_TOO_LARGE", f"the blob is larger than {self._max_bytes} bytes")
