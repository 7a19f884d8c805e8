"""AuditService: accepts audits, tells how they go, hands out their reports."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any

import grpc
import sqlalchemy as sa
from google.rpc import status_pb2

from onnx_audit import v1
from onnx_audit.v1 import audit_pb2_grpc
from onnx_audit_server import logs, tracing
from onnx_audit_server.access import identity
from onnx_audit_server.access.guard import check_scope
from onnx_audit_server.access.identity import Principal, Scope
from onnx_audit_server.access.ledger import Ledger
from onnx_audit_server.api import names
from onnx_audit_server.api.reports import ReportCalls
from onnx_audit_server.api.validate import check_audit
from onnx_audit_server.errors import ServiceError, invalid
from onnx_audit_server.jobs.events import EventTail
from onnx_audit_server.jobs.queue import JobQueue
from onnx_audit_server.reports import assemble
from onnx_audit_server.reports.sources import ReportSources
from onnx_audit_server.settings import Settings
from onnx_audit_server.store import references
from onnx_audit_server.store.blobs import BlobStore
from onnx_audit_server.store.records import ENDED, Records, RequestIdReusedError, now, state_changed

MAX_REQUEST_ID = 100

Context = grpc.aio.ServicerContext[Any, Any]
log = logs.get(__name__)


class AuditServicer(audit_pb2_grpc.AuditServiceServicer):
    """Serves audits."""

    def __init__(
        self,
        settings: Settings,
        records: Records,
        blobs: BlobStore,
        queue: JobQueue,
        ledger: Ledger,
        tail: EventTail,
        draining: Callable[[], bool],
    ) -> None:
        self._settings = settings
        self._records = records
        self._blobs = blobs
        self._sources = ReportSources(records, blobs)
        self._reports = ReportCalls(self._sources, blobs)
        self._queue = queue
        self._ledger = ledger
        self._tail = tail
        self._draining = draining

    async def CreateAudit(self, request: v1.CreateAuditRequest, context: Context) -> v1.Audit:
        """See AuditService."""
        if self._draining():
            raise ServiceError(
                "DRAINING", "the server is shutting down; try again shortly", retry_after=5.0
            )
        if len(request.request_id) > MAX_REQUEST_ID:
            raise invalid(("request_id", f"longer than {MAX_REQUEST_ID} characters"))
        if "\0" in request.request_id:
            raise invalid(("request_id", "holds a NUL, which is no text"))
        return await asyncio.to_thread(self._accept, request)

    async def GetAudit(self, request: v1.GetAuditRequest, context: Context) -> v1.Audit:
        """See AuditService."""
        return await self._get(request.name)

    async def ListAudits(
        self, request: v1.ListAuditsRequest, context: Context
    ) -> v1.ListAuditsResponse:
        """See AuditService."""
        audits, cursor = await asyncio.to_thread(
            self._records.list_audits,
            names.page_size(request.page_size),
            names.decode_token(request.page_token),
            list(request.states),
            names.parse(request.model, "models", "model") if request.model else "",
        )
        return v1.ListAuditsResponse(audits=audits, next_page_token=names.encode_token(cursor))

    async def CancelAudit(self, request: v1.CancelAuditRequest, context: Context) -> v1.Audit:
        """See AuditService."""
        audit = await self._get(request.name)
        if audit.principal != identity.current().name:
            check_scope(identity.current(), Scope.ADMIN, "CancelAudit of somebody else's audit")
        return await asyncio.to_thread(self._cancel, names.parse(request.name, "audits"))

    async def WatchAudit(
        self, request: v1.WatchAuditRequest, context: Context
    ) -> AsyncIterator[v1.AuditEvent]:
        """See AuditService."""
        audit = await self._get(request.name)
        after = request.after_sequence
        if not 0 <= after <= audit.last_sequence:
            raise ServiceError(
                "INVALID_FIELD",
                f"after_sequence {after} is outside 0 to {audit.last_sequence}",
                violations=[("after_sequence", f"must be from 0 to {audit.last_sequence}")],
            )
        if audit.state in ENDED and after == audit.last_sequence:
            return
        async for event in self._tail.follow(names.parse(request.name, "audits"), after):
            yield event

    async def GetReport(self, request: v1.GetReportRequest, context: Context) -> v1.Report:
        """See AuditService."""
        return assemble.from_json(await asyncio.to_thread(self._sources.content, request.name))

    async def RenderReport(
        self, request: v1.RenderReportRequest, context: Context
    ) -> v1.RenderReportResponse:
        """See AuditService."""
        return await asyncio.to_thread(self._reports.render, request)

    async def CompareReports(
        self, request: v1.CompareReportsRequest, context: Context
    ) -> v1.CompareReportsResponse:
        """See AuditService."""
        return await asyncio.to_thread(self._reports.compare, request)

    async def EvaluatePolicy(
        self, request: v1.EvaluatePolicyRequest, context: Context
    ) -> v1.PolicyResult:
        """See AuditService."""
        return await asyncio.to_thread(self._reports.evaluate, request)

    async def _get(self, name: str) -> v1.Audit:
        identifier = names.parse(name, "audits")
        audit = await asyncio.to_thread(self._records.get_audit, identifier)
        if audit is None:
            raise names.not_found(name)
        return audit

    def _accept(self, request: v1.CreateAuditRequest) -> v1.Audit:
        audit = v1.Audit()
        audit.CopyFrom(request.audit)
        check_audit(audit, self._records, self._blobs, self._sources, self._settings.audit_timeout)
        audit.state = v1.AUDIT_STATE_QUEUED
        audit.name = f"audits/{new_id()}"
        principal = identity.current()
        audit.principal = principal.name
        if request.validate_only:
            audit.ClearField("name")
            return audit
        if (trace := tracing.current()) is not None:
            audit.traceparent = str(trace)
        try:
            accepted = self._records.create_audit(
                audit,
                request.request_id,
                request_digest(request),
                lambda connection: self._begin(connection, audit, principal),
            )
        except RequestIdReusedError:
            raise ServiceError(
                "REQUEST_ID_REUSED",
                f"request_id {request.request_id!r} was used with another request; "
                "give every new request an id of its own",
                violations=[("request_id", "was used with another request")],
            ) from None
        except references.MissingError as error:
            raise ServiceError(
                "BLOB_MISSING",
                f"{error} has just been removed; upload or run it again",
                metadata={"resource": str(error)},
            ) from None
        # The line that ties the request's id to the audit's.
        log.info("audit accepted", audit=accepted.name.partition("/")[2])
        return accepted

    def _begin(self, connection: sa.Connection, audit: v1.Audit, principal: Principal) -> None:
        """What makes an audit run, in the transaction that accepts it."""
        references.require_present(connection, audit)
        self._ledger.admit_audit(connection, principal)
        self._queue.enqueue(connection, audit.name.partition("/")[2])

    def _cancel(self, identifier: str) -> v1.Audit:
        def change(audit: v1.Audit) -> list[v1.AuditEvent]:
            if audit.state == v1.AUDIT_STATE_QUEUED:
                audit.state = v1.AUDIT_STATE_CANCELLED
                audit.end_time.CopyFrom(now())
            elif audit.state == v1.AUDIT_STATE_RUNNING:
                audit.state = v1.AUDIT_STATE_CANCELLING
            elif audit.state in {v1.AUDIT_STATE_SUCCEEDED, v1.AUDIT_STATE_FAILED}:
                state = v1.AuditState.Name(audit.state).removeprefix("AUDIT_STATE_")
                raise ServiceError(
                    "WRONG_STATE", f"the audit has ended: {state}", metadata={"state": state}
                )
            else:
                return []
            return [state_changed(audit)]

        audit = self._records.update_audit(identifier, change)
        if audit.state == v1.AUDIT_STATE_CANCELLING:
            reason = status_pb2.Status(
                code=grpc.StatusCode.CANCELLED.value[0], message="the audit was cancelled"
            )
            self._records.request_stop(identifier, reason)
        return audit


def new_id() -> str:
    """An id that sorts by time and reads well: date, time, six random characters."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


def request_digest(request: v1.CreateAuditRequest) -> str:
    """What tells whether a request id came with the same request."""
    return hashlib.sha256(request.audit.SerializeToString(deterministic=True)).hexdigest()
