"""Around every RPC: request id, who calls and whether they may, log line, metrics, statuses."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import structlog

from onnx_audit_server import logs, metrics, tracing
from onnx_audit_server.access import identity, methods
from onnx_audit_server.access.attempts import address_of
from onnx_audit_server.access.certificates import peer_name
from onnx_audit_server.access.guard import Guard, check_scope
from onnx_audit_server.access.quotas import ProcessQuotas
from onnx_audit_server.api.chunks import read_chunk
from onnx_audit_server.errors import ServiceError
from onnx_audit_server.store.faults import is_transient

REQUEST_ID = "x-request-id"
STATUS_DETAILS = "grpc-status-details-bin"
"""Trailer in which gRPC's richer error model keeps a google.rpc.Status."""
STORE_RETRY = 2.0
"""Seconds after which a call may be tried again that a store's absence broke."""
QUIET = ("/grpc.health.v1.Health/", "/grpc.reflection.")
"""Methods that machines call all the time; they are counted, not logged."""

READERS: dict[str, Callable[[bytes], Any]] = {"/onnx_audit.v1.BlobService/Write": read_chunk}
"""How messages are read that are not read by the generated code."""

log = logs.get(__name__)


class Gate:
    """Lets calls in: first who they are, then whether they may, then how many."""

    def __init__(self, guard: Guard, quotas: ProcessQuotas) -> None:
        self._guard = guard
        self._quotas = quotas

    async def admit(self, method: str, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """Admits a call, before anything of its request is looked at.

        Raises:
            ServiceError: UNAUTHENTICATED, PERMISSION_DENIED or QUOTA_EXCEEDED.
        """
        scope = methods.needed(method)
        if scope is None:
            return
        principal = await self._identify(context)
        identity.enter(principal)
        if self._guard.asks:
            structlog.contextvars.bind_contextvars(principal=principal.name)
        check_scope(principal, scope, method.rpartition("/")[2])
        self._quotas.count_call(principal)

    async def check_again(self, method: str, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """Ends a stream whose caller's token has meanwhile ended or been revoked.

        Raises:
            ServiceError: UNAUTHENTICATED or PERMISSION_DENIED.
        """
        scope = methods.needed(method)
        if scope is None or not self._guard.asks:
            return
        try:
            check_scope(await self._identify(context), scope, method.rpartition("/")[2])
        except ServiceError as error:
            # Whoever has a new token by now may go on where the stream broke.
            error.retry_after = 0.0
            raise

    async def _identify(self, context: grpc.aio.ServicerContext[Any, Any]) -> identity.Principal:
        metadata = dict(context.invocation_metadata() or ())
        certificate = peer_name(context.auth_context()) if self._guard.asks else None
        return await self._guard.identify(
            str(metadata.get("authorization", "")), certificate, address_of(context.peer())
        )


class Interceptor(grpc.aio.ServerInterceptor):
    """Wraps the handlers of all services."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]
        ],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Returns the method's handler with the wrapping around it."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method
        wrapped: grpc.RpcMethodHandler[Any, Any] = _wrap(method, handler, self._gate)
        return wrapped


def _wrap(method: str, handler: Any, gate: Gate) -> Any:  # noqa: ANN401 - four kinds without a common type
    """Returns a handler like the given one that does the same within a _Call."""
    match handler.request_streaming, handler.response_streaming:
        case False, False:
            make, behaviour = grpc.unary_unary_rpc_method_handler, handler.unary_unary
        case False, True:
            make, behaviour = grpc.unary_stream_rpc_method_handler, handler.unary_stream
        case True, False:
            make, behaviour = grpc.stream_unary_rpc_method_handler, handler.stream_unary
        case _:
            make, behaviour = grpc.stream_stream_rpc_method_handler, handler.stream_stream
    wrap = _wrap_stream if handler.response_streaming else _wrap_single
    return make(
        wrap(method, behaviour, gate),
        request_deserializer=READERS.get(method, handler.request_deserializer),
        response_serializer=handler.response_serializer,
    )


def _wrap_single(method: str, behaviour: Callable[..., Any], gate: Gate) -> Callable[..., Any]:
    async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:  # noqa: ANN401
        async with _Call(method, context) as observed:
            try:
                await gate.admit(method, context)
                return await behaviour(request, context)
            except Exception as error:  # noqa: BLE001 - sorted by what the caller can do
                await observed.fail(error)

    return call


def _wrap_stream(method: str, behaviour: Callable[..., Any], gate: Gate) -> Callable[..., Any]:
    async def call(
        request: Any,  # noqa: ANN401
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[Any]:
        async with _Call(method, context) as observed:
            try:
                await gate.admit(method, context)
                async for response in behaviour(request, context):
                    await gate.check_again(method, context)
                    yield response
            except Exception as error:  # noqa: BLE001 - sorted by what the caller can do
                await observed.fail(error)

    return call


class _Call:
    """One RPC from its start to its end."""

    def __init__(self, method: str, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        self._method = method
        self._context = context
        self._reason: str | None = None

    async def __aenter__(self) -> _Call:
        metadata = dict(self._context.invocation_metadata() or ())
        given = str(metadata.get(REQUEST_ID, ""))[:100]
        request_id = given if given.isprintable() and given else uuid.uuid4().hex
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        caller = tracing.parse(str(metadata.get(tracing.HEADER, "")))
        self._span = tracing.start(
            self._method.lstrip("/"), caller, "SERVER", {"onnx_audit.request_id": request_id}
        )
        tracing.bind(self._span.context)
        self._context.set_trailing_metadata(((REQUEST_ID, request_id),))
        self._start = time.monotonic()
        metrics.RPCS_UNDER_WAY.labels(self._method).inc()
        return self

    async def fail(self, error: Exception) -> None:
        """Ends the RPC with what an exception means for its caller; raises it if it is a fault."""
        if isinstance(error, ServiceError):
            await self.abort(error)
        if not is_transient(error):
            raise error
        log.warning("store unavailable", error=str(error)[:300])
        await self.abort(
            ServiceError(
                "STORE_UNAVAILABLE",
                "the service's database or blob store is out of reach; try again shortly",
                retry_after=STORE_RETRY,
            )
        )

    async def abort(self, error: ServiceError) -> None:
        """Ends the RPC with an error's status."""
        self._reason = error.reason
        details = (STATUS_DETAILS, error.status.SerializeToString())
        await self._context.abort(
            error.code, str(error), (*self._context.trailing_metadata(), details)
        )

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        seconds = time.monotonic() - self._start
        code = self._code(error)
        metrics.RPCS_UNDER_WAY.labels(self._method).dec()
        metrics.RPCS.labels(self._method, code).inc()
        metrics.RPC_SECONDS.labels(self._method).observe(seconds)
        self._span.end(error="" if code == "OK" else code, code=code)
        fields = {"method": self._method, "code": code, "seconds": round(seconds, 4)}
        if self._reason is not None:
            fields["reason"] = self._reason
        if code in {"UNKNOWN", "INTERNAL"} and self._reason is None:
            log.error("rpc", exc_info=error, **fields)
            fault = ServiceError("INTERNAL", "a fault of the service; its log has the details")
            await self.abort(fault)
        elif not self._method.startswith(QUIET):
            log.info("rpc", **fields)

    def _code(self, error: BaseException | None) -> str:
        if self._reason is not None:
            return str(ServiceError(self._reason, "").code.name)
        if error is None:
            code = self._context.code()
            return code.name if isinstance(code, grpc.StatusCode) else "OK"
        # A cancelled task, or a generator closed early: the caller has gone.
        gone = isinstance(error, (GeneratorExit, asyncio.CancelledError))
        return "CANCELLED" if gone else "INTERNAL"
