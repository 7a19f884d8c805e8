"""The asynchronous client: `Client`'s methods, awaited."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Mapping,
    Sequence,
)
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import grpc
import grpc.aio
import numpy.typing as npt
from google.protobuf.message import Message

from onnx_audit import flows, report_calls, rpc, v1
from onnx_audit.client import DEFAULT_TARGET
from onnx_audit.connection import Connection, PathLike, Token
from onnx_audit.errors import OnnxAuditError, ServiceError, Unavailable
from onnx_audit.files import Progress
from onnx_audit.flows import Call, Flow, Send, Sleep, Step
from onnx_audit.policies import PolicyLike, as_loaded
from onnx_audit.probes import ProbesLike, load_probes
from onnx_audit.report_calls import ReportLike
from onnx_audit.requests import AuditLike, AuditorsLike, audit_name
from onnx_audit.retries import RetryPolicy
from onnx_audit.rpc import RequestT, ResponseT, Rpc
from onnx_audit.session import AuditArguments, ModelLike, ProbeSetLike, Session
from onnx_audit.status import from_rpc_error, require_success, service_error
from onnx_audit.streams import Download, Watch
from onnx_audit.tracing import traced

T = TypeVar("T")

# What grpc.aio says, in place of the server's status, when the server ends a call just while a
# message is being sent.
_BROKEN_STREAM: Final = "Internal error from Core"


class AsyncClient:
    """Talks to an onnx-audit service from an event loop; see `Client`, whose methods these are.

    Files are read and digests taken in threads. Create it where the loop runs.

    Args:
        target: Address of the service, host:port; https:// before it asks for TLS.
        timeout: Deadline of one attempt of one call in seconds, as for `Client`.
        retries: When to try again.
        token: Bearer token, or a function that returns the present one, as for `Client`.
        tls: Whether to use TLS.
        ca: File with the authorities of the service's certificate, PEM.
        certificate: File with a client certificate, PEM.
        key: File with its private key, PEM.

    Raises:
        ConfigError: The connection's settings contradict each other, or a file cannot be read.
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        timeout: float = 30.0,
        retries: RetryPolicy | None = None,
        token: Token | None = None,
        tls: bool = False,
        ca: PathLike | None = None,
        certificate: PathLike | None = None,
        key: PathLike | None = None,
    ) -> None:
        self._connection = Connection(target, token, tls, ca, certificate, key)
        self._session = Session(timeout, retries or RetryPolicy())
        address, credentials = self._connection.address, self._connection.credentials
        self._channel = (
            grpc.aio.insecure_channel(address, options=rpc.CHANNEL_OPTIONS)
            if credentials is None
            else grpc.aio.secure_channel(address, credentials, options=rpc.CHANNEL_OPTIONS)
        )
        self._stubs: dict[type[Any], Any] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connection; calls in progress are cancelled."""
        await self._channel.close()

    async def upload_model(
        self,
        path: str | os.PathLike[str],
        *,
        display_name: str | None = None,
        tags: Mapping[str, str] | None = None,
        progress: Progress | None = None,
    ) -> v1.Model:
        """Uploads an ONNX file with its external data; see `Client.upload_model`."""
        return await self._run(
            self._session.upload_model(
                Path(path), display_name=display_name, tags=tags, progress=progress
            )
        )

    async def upload_probes(
        self,
        probes: ProbesLike,
        *,
        labels: npt.ArrayLike | None = None,
        class_names: Sequence[str] | None = None,
        display_name: str | None = None,
        progress: Progress | None = None,
    ) -> v1.ProbeSet:
        """Uploads probes and registers them; see `Client.upload_probes`."""
        loaded = await asyncio.to_thread(
            load_probes, probes, labels=labels, class_names=class_names, display_name=display_name
        )
        return await self._run(self._session.upload_probes(loaded, progress=progress))

    async def upload_files(
        self, paths: Sequence[str | os.PathLike[str]], *, progress: Progress | None = None
    ) -> None:
        """Uploads files as blobs; see `Client.upload_files`."""
        files = [Path(path) for path in paths]
        await self._run(flows.upload_files(files, self._session.policy, progress))

    async def audit(
        self,
        model: ModelLike,
        probes: ProbeSetLike,
        *,
        auditors: AuditorsLike = ("distortion",),
        input_spec: v1.InputSpec | None = None,
        seed: int = 0,
        timeout: float | None = None,
        display_name: str | None = None,
        request_id: str | None = None,
        linear_head: v1.LinearHeadConfig | None = None,
        policy: PolicyLike | None = None,
        baseline: ReportLike | None = None,
        fresh: bool = False,
    ) -> v1.Audit:
        """Starts an audit and returns at once; see `Client.audit`."""
        arguments = AuditArguments(
            auditors,
            input_spec,
            seed,
            timeout,
            display_name,
            request_id,
            linear_head,
            policy,
            baseline,
            fresh,
        )
        return await self._run(self._session.audit(model, probes, arguments))

    async def watch(
        self, audit: AuditLike, after_sequence: int = 0
    ) -> AsyncGenerator[v1.AuditEvent, None]:
        """Yields an audit's events in order, each once; see `Client.watch`."""
        watch = Watch(audit_name(audit), after_sequence, self._session.policy)
        while not watch.ended:
            try:
                stream = self._stream(
                    rpc.WATCH_AUDIT, watch.request(), self._session.watch_deadline
                )
                async with contextlib.aclosing(stream) as events:
                    async for event in events:
                        if watch.accept(event):
                            yield event
                if not watch.ended:
                    watch.closed(await self.get_audit(audit))
            except ServiceError as error:
                await asyncio.sleep(watch.delay_after(error))

    async def wait(self, audit: AuditLike) -> v1.Audit:
        """Waits for the end of an audit and returns it, succeeded; see `Client.wait`."""
        async for _ in self.watch(audit):
            pass
        return require_success(await self.get_audit(audit))

    async def get_audit(self, audit: AuditLike) -> v1.Audit:
        """Returns an audit as it is now."""
        request = v1.GetAuditRequest(name=audit_name(audit))
        return await self._run(self._session.call(rpc.GET_AUDIT, request))

    async def audits(
        self, *, model: str = "", states: Collection[v1.AuditState.ValueType] = ()
    ) -> AsyncIterator[v1.Audit]:
        """Yields audits, newest first, fetching them page by page; see `Client.audits`."""
        request = v1.ListAuditsRequest(model=model, states=states)
        async for page in self._pages(rpc.LIST_AUDITS, request):
            for audit in page.audits:
                yield audit

    async def models(self) -> AsyncIterator[v1.Model]:
        """Yields the registered models, newest first."""
        async for page in self._pages(rpc.LIST_MODELS, v1.ListModelsRequest()):
            for model in page.models:
                yield model

    async def probe_sets(self) -> AsyncIterator[v1.ProbeSet]:
        """Yields the registered probe sets, newest first."""
        async for page in self._pages(rpc.LIST_PROBE_SETS, v1.ListProbeSetsRequest()):
            for probe_set in page.probe_sets:
                yield probe_set

    async def cancel(self, audit: AuditLike) -> v1.Audit:
        """Asks an audit to stop; see `Client.cancel`."""
        request = v1.CancelAuditRequest(name=audit_name(audit))
        return await self._run(self._session.call(rpc.CANCEL_AUDIT, request))

    async def report(self, audit: AuditLike) -> v1.Report:
        """Returns the report of an audit that succeeded; see `Client.report`."""
        request = v1.GetReportRequest(name=f"{audit_name(audit)}/report")
        return await self._run(self._session.call(rpc.GET_REPORT, request))

    async def evaluate_policy(
        self, report: ReportLike, policy: PolicyLike, baseline: ReportLike | None = None
    ) -> v1.PolicyResult:
        """Applies a policy to a report; see `Client.evaluate_policy`."""
        flow = report_calls.evaluate(report, policy, baseline, self._session.policy)
        return await self._run(flow)

    async def check_policy(self, policy: PolicyLike) -> v1.Policy:
        """Checks a policy and returns it; see `Client.check_policy`."""
        loaded = await asyncio.to_thread(as_loaded, policy)
        await self._run(report_calls.evaluate(None, loaded, None, self._session.policy))
        return loaded.policy

    async def compare(
        self, baseline: ReportLike, candidate: ReportLike
    ) -> v1.CompareReportsResponse:
        """Says what moved between two reports; see `Client.compare`."""
        return await self._run(report_calls.compare(baseline, candidate, self._session.policy))

    async def render(
        self,
        report: ReportLike,
        form: v1.ReportFormat.ValueType,
        *,
        policy: PolicyLike | None = None,
        baseline: ReportLike | None = None,
    ) -> v1.RenderReportResponse:
        """Returns a report as a document; see `Client.render`."""
        flow = report_calls.render(report, form, policy, baseline, self._session.policy)
        return await self._run(flow)

    async def download(self, blob: v1.BlobRef, path: str | os.PathLike[str]) -> Path:
        """Downloads a blob and checks its digest; see `Client.download`."""
        deadline = self._session.transfer_deadline(blob.size_bytes)
        with Download(blob, Path(path), self._session.policy) as download:
            while not download.complete:
                try:
                    async for chunk in self._stream(rpc.READ, download.request(), deadline):
                        await asyncio.to_thread(download.write, chunk)
                    download.closed()
                except ServiceError as error:
                    await asyncio.sleep(download.delay_after(error))
            return await asyncio.to_thread(download.finish)

    async def _run(self, flow: Flow[T]) -> T:
        """Performs the steps of a flow on the event loop."""
        with contextlib.closing(flow):
            try:
                step = next(flow)
                while True:
                    try:
                        result = await self._perform(step)
                    except (OnnxAuditError, OSError) as error:
                        step = flow.throw(error)
                    else:
                        step = flow.send(result)
            except StopIteration as stop:
                value: T = stop.value
                return value

    async def _perform(self, step: Step) -> object:
        if isinstance(step, Call):
            deadline = self._session.deadline(step.rpc)
            return await _invoke(self._method(step.rpc)(step.request, timeout=deadline))
        if isinstance(step, Send):
            return await self._send(step)
        if isinstance(step, Sleep):
            await asyncio.sleep(step.seconds)
            return None
        return await asyncio.to_thread(step.function)

    async def _send(self, step: Send) -> v1.WriteResponse:
        """Streams an upload; a file that cannot be read any more is an OSError."""
        failures: list[OSError] = []

        async def requests() -> AsyncIterator[bytes]:
            try:
                while (request := await asyncio.to_thread(next, step.requests, None)) is not None:
                    yield request
            except OSError as error:  # gRPC would only say that the call was cancelled
                failures.append(error)
                raise

        deadline = self._session.transfer_deadline(step.size)
        try:
            response: v1.WriteResponse = await _invoke(
                self._method(rpc.WRITE)(requests(), timeout=deadline)
            )
        except ServiceError as error:
            if failures:
                raise failures[0] from None
            if error.message == _BROKEN_STREAM and not error.reason:
                raise Unavailable(
                    "the server ended the upload while a chunk was on its way", code="UNAVAILABLE"
                ) from error
            raise
        return response

    async def _stream(
        self, method: Rpc[RequestT, ResponseT], request: RequestT, deadline: float
    ) -> AsyncGenerator[ResponseT, None]:
        """Yields a call's responses; leaving it early cancels the call."""
        call = self._method(method)(request, timeout=deadline)
        try:
            async for response in call:
                yield response
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        finally:
            call.cancel()

    async def _pages(
        self, method: Rpc[Any, ResponseT], request: Message
    ) -> AsyncIterator[ResponseT]:
        while True:
            page = await self._run(self._session.call(method, request))
            yield page
            if (following := self._session.following(request, page)) is None:
                return
            request = following

    def _method(self, method: Rpc[Any, Any]) -> Callable[..., Any]:
        if method.stub not in self._stubs:
            self._stubs[method.stub] = method.stub(self._channel)
        bound: Callable[..., Any] = getattr(self._stubs[method.stub], method.method)
        call = traced(method.span, bound)
        return functools.partial(call, metadata=self._connection.metadata)


async def _invoke(call: Awaitable[T]) -> T:
    """Awaits a call whose gRPC errors become this package's."""
    try:
        return await call
    except grpc.RpcError as error:
        raise from_rpc_error(error) from error
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        # gRPC raises this too where the service answered CANCELLED or the client was closed.
        raise service_error("CANCELLED", "the call was cancelled") from error
