"""Around every RPC: request id, log line, metrics, and errors turned into statuses."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import structlog

from onnx_audit_server import logs, metrics
from onnx_audit_server.errors import ServiceError

REQUEST_ID = "x-request-id"
STATUS_DETAILS = "grpc-status-details-bin"
"""Trailer in which gRPC's richer error model keeps a google.rpc.Status."""
QUIET = ("/grpc.health.v1.Health/", "/grpc.reflection.")
"""Methods that machines call all the time; they are counted, not logged."""

log = logs.get(__name__)


class Interceptor(grpc.aio.ServerInterceptor):
    """Wraps the handlers of all services."""

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
        wrapped: grpc.RpcMethodHandler[Any, Any] = _wrap(method, handler)
        return wrapped


def _wrap(method: str, handler: Any) -> Any:  # noqa: ANN401 - four kinds without a common type
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
        wrap(method, behaviour),
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )


def _wrap_single(method: str, behaviour: Callable[..., Any]) -> Callable[..., Any]:
    async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:  # noqa: ANN401
        async with _Call(method, context) as observed:
            try:
                return await behaviour(request, context)
            except ServiceError as error:
                await observed.abort(error)

    return call


def _wrap_stream(method: str, behaviour: Callable[..., Any]) -> Callable[..., Any]:
    async def call(
        request: Any,  # noqa: ANN401
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[Any]:
        async with _Call(method, context) as observed:
            try:
                async for response in behaviour(request, context):
                    yield response
            except ServiceError as error:
                await observed.abort(error)

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
        self._context.set_trailing_metadata(((REQUEST_ID, request_id),))
        self._start = time.monotonic()
        return self

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
        metrics.RPCS.labels(self._method, code).inc()
        metrics.RPC_SECONDS.labels(self._method).observe(seconds)
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
