"""The synchronous client."""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import grpc
import numpy.typing as npt
from google.protobuf.message import Message

from onnx_audit import flows, report_calls, rpc, v1
from onnx_audit.connection import Connection, PathLike, Token
from onnx_audit.errors import OnnxAuditError, ServiceError
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

DEFAULT_TARGET: Final = "127.0.0.1:50051"


class Client:
    """Talks to an onnx-audit service.

    Calls that the service refuses raise a `ServiceError`; calls that cannot reach it are tried
    again as `retries` says. A client may be shared by threads; close it, or use it in `with`.

    Args:
        target: Address of the service, host:port; https:// before it asks for TLS.
        timeout: Deadline of one attempt of one call in seconds. Transfers get more by their size,
            calls in which the service reads whole files ten times as much.
        retries: When to try again.
        token: Bearer token, or a function that returns the present one. Without TLS it is sent to
            this machine alone, unless the target begins with http://.
        tls: Whether to use TLS; `ca`, `certificate` and https:// ask for it too.
        ca: File with the authorities of the service's certificate, PEM; by default gRPC's own.
        certificate: File with a client certificate, PEM, for a service that wants one.
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
            grpc.insecure_channel(address, options=rpc.CHANNEL_OPTIONS)
            if credentials is None
            else grpc.secure_channel(address, credentials, options=rpc.CHANNEL_OPTIONS)
        )
        self._stubs: dict[type[Any], Any] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection; calls in progress are cancelled."""
        self._channel.close()

    def upload_model(
        self,
        path: str | os.PathLike[str],
        *,
        display_name: str | None = None,
        tags: Mapping[str, str] | None = None,
        progress: Progress | None = None,
    ) -> v1.Model:
        """Uploads an ONNX file with its external data and registers it.

        Content that the service holds is not sent again; a broken upload goes on where it broke.

        Args:
            path: The ONNX file; its external data is looked for where it says, beside it.
            display_name: What people call the model; by default the file's name.
            tags: Free tags, such as {"architecture": "resnet"}.
            progress: Called with (file, bytes sent, bytes in all), possibly from another thread.

        Raises:
            ModelFileError: The file or its external data is missing, or it is not ONNX.
            ServiceError: The service does not accept it.
        """
        return self._run(
            self._session.upload_model(
                Path(path), display_name=display_name, tags=tags, progress=progress
            )
        )

    def upload_probes(
        self,
        probes: ProbesLike,
        *,
        labels: npt.ArrayLike | None = None,
        class_names: Sequence[str] | None = None,
        display_name: str | None = None,
        progress: Progress | None = None,
    ) -> v1.ProbeSet:
        """Uploads probes and registers them.

        Args:
            probes: An array [N, ...], a mapping with `inputs` and perhaps `labels`, a .npz or
                .safetensors file, or a folder of images with a subfolder per label.
            labels: Labels [N] that stand in for those of the source.
            class_names: Names of the classes by label.
            display_name: What people call the set; by default the file's name.
            progress: Called with (file, bytes sent, bytes in all), possibly from another thread.

        Raises:
            ProbeError: They cannot be read, or hold what no audit can use.
            ServiceError: The service does not accept them.
        """
        loaded = load_probes(
            probes, labels=labels, class_names=class_names, display_name=display_name
        )
        return self._run(self._session.upload_probes(loaded, progress=progress))

    def upload_files(
        self, paths: Sequence[str | os.PathLike[str]], *, progress: Progress | None = None
    ) -> None:
        """Uploads files as blobs, such as those that belong to a report of another service.

        Args:
            paths: The files; content that the service holds is not sent again.
            progress: Called with (file, bytes sent, bytes in all), possibly from another thread.
        """
        files = [Path(path) for path in paths]
        self._run(flows.upload_files(files, self._session.policy, progress))

    def audit(
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
        """Starts an audit and returns at once; `wait` or `watch` follow it.

        Args:
            model: A model, its name, or a file to upload first.
            probes: A probe set, its name, or anything that `upload_probes` takes.
            auditors: Names of auditors, each with its defaults, or their configurations. A peer of
                `transfer` may name a file, which is uploaded first; so may the fields of `units`
                that take arrays or a model.
            input_spec: How probes map to the model's input; what is unset the service works out
                where that is safe and reports in `input_spec` and `input_spec_notes`.
            seed: Seed of every random draw; not negative.
            timeout: Longest run in seconds once a worker is on it; by default the service's.
            display_name: What people call the audit.
            request_id: Makes a repeated call harmless; by default a new one per call, so that
                retries within this call start one audit only.
            linear_head: For a model without classes, such as an autoencoder: the linear head to
                fit on the labelled probes.
            policy: Rules that the report is held against when the audit ends: a policy, a YAML
                file, or the name of a ready-made one. The audit then has a verdict.
            baseline: The report that the policy compares with: a report, or the audit that made it.
            fresh: Compute every section anew, even where an earlier audit has computed the same.

        Raises:
            ConfigError: An argument cannot be right; for a policy, with line and column.
            ServiceError: The service does not accept the audit.
        """
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
        return self._run(self._session.audit(model, probes, arguments))

    def watch(self, audit: AuditLike, after_sequence: int = 0) -> Iterator[v1.AuditEvent]:
        """Yields an audit's events in order, each once, until the one that ends it.

        Args:
            audit: The audit or its name.
            after_sequence: Yield events with a higher number than this; 0 yields all.

        Raises:
            ServiceError: There is no such audit, or the service stays out of reach.
        """
        watch = Watch(audit_name(audit), after_sequence, self._session.policy)
        while not watch.ended:
            try:
                with contextlib.closing(
                    self._stream(rpc.WATCH_AUDIT, watch.request(), self._session.watch_deadline)
                ) as events:
                    for event in events:
                        if watch.accept(event):
                            yield event
                if not watch.ended:
                    watch.closed(self.get_audit(audit))
            except ServiceError as error:
                time.sleep(watch.delay_after(error))

    def wait(self, audit: AuditLike) -> v1.Audit:
        """Waits for the end of an audit and returns it, succeeded.

        Raises:
            AuditFailed: It failed.
            AuditCancelled: It was cancelled.
            ServiceError: There is no such audit, or the service stays out of reach.
        """
        for _ in self.watch(audit):
            pass
        return require_success(self.get_audit(audit))

    def get_audit(self, audit: AuditLike) -> v1.Audit:
        """Returns an audit as it is now."""
        request = v1.GetAuditRequest(name=audit_name(audit))
        return self._run(self._session.call(rpc.GET_AUDIT, request))

    def audits(
        self, *, model: str = "", states: Collection[v1.AuditState.ValueType] = ()
    ) -> Iterator[v1.Audit]:
        """Yields audits, newest first, fetching them page by page.

        Args:
            model: Only audits of the model with this name; empty means all.
            states: Only audits in one of these states; none means all.
        """
        request = v1.ListAuditsRequest(model=model, states=states)
        for page in self._pages(rpc.LIST_AUDITS, request):
            yield from page.audits

    def models(self) -> Iterator[v1.Model]:
        """Yields the registered models, newest first."""
        for page in self._pages(rpc.LIST_MODELS, v1.ListModelsRequest()):
            yield from page.models

    def probe_sets(self) -> Iterator[v1.ProbeSet]:
        """Yields the registered probe sets, newest first."""
        for page in self._pages(rpc.LIST_PROBE_SETS, v1.ListProbeSetsRequest()):
            yield from page.probe_sets

    def cancel(self, audit: AuditLike) -> v1.Audit:
        """Asks an audit to stop; doing so again changes nothing.

        Raises:
            FailedPrecondition: It has ended otherwise.
        """
        request = v1.CancelAuditRequest(name=audit_name(audit))
        return self._run(self._session.call(rpc.CANCEL_AUDIT, request))

    def report(self, audit: AuditLike) -> v1.Report:
        """Returns the report of an audit that succeeded.

        Raises:
            FailedPrecondition: The audit has not finished, or ended otherwise.
        """
        request = v1.GetReportRequest(name=f"{audit_name(audit)}/report")
        return self._run(self._session.call(rpc.GET_REPORT, request))

    def evaluate_policy(
        self, report: ReportLike, policy: PolicyLike, baseline: ReportLike | None = None
    ) -> v1.PolicyResult:
        """Applies a policy to a report; nothing is computed again.

        Args:
            report: A report, or the audit that made it.
            policy: A policy, a YAML file, or the name of a ready-made one.
            baseline: The report that the policy compares with, likewise.

        Raises:
            ConfigError: The policy is wrong; every mistake with its line and column.
            ServiceError: There is no such report, or it is not whole.
        """
        flow = report_calls.evaluate(report, policy, baseline, self._session.policy)
        return self._run(flow)

    def check_policy(self, policy: PolicyLike) -> v1.Policy:
        """Checks a policy and returns it.

        Raises:
            ConfigError: It is wrong; every mistake with its line and column.
        """
        loaded = as_loaded(policy)
        self._run(report_calls.evaluate(None, loaded, None, self._session.policy))
        return loaded.policy

    def compare(self, baseline: ReportLike, candidate: ReportLike) -> v1.CompareReportsResponse:
        """Says what moved from one report to another, and whether chance explains it.

        Args:
            baseline: The older report, or the audit that made it.
            candidate: The newer one, likewise.
        """
        return self._run(report_calls.compare(baseline, candidate, self._session.policy))

    def render(
        self,
        report: ReportLike,
        form: v1.ReportFormat.ValueType,
        *,
        policy: PolicyLike | None = None,
        baseline: ReportLike | None = None,
    ) -> v1.RenderReportResponse:
        """Returns a report as a document.

        Args:
            report: A report, or the audit that made it.
            form: The form of the document.
            policy: Rules whose result the document shows; by default that of the audit.
            baseline: The report that the policy compares with.

        Raises:
            ConfigError: The policy is wrong; every mistake with its line and column.
            Unimplemented: The service does not offer the form.
        """
        flow = report_calls.render(report, form, policy, baseline, self._session.policy)
        return self._run(flow)

    def download(self, blob: v1.BlobRef, path: str | os.PathLike[str]) -> Path:
        """Downloads a blob, such as a section's artefact, and checks its digest.

        The file appears whole or not at all; one that exists is replaced.

        Raises:
            NotFound: The service does not hold it.
            DataLoss: The bytes are not those that the digest names.
        """
        deadline = self._session.transfer_deadline(blob.size_bytes)
        with Download(blob, Path(path), self._session.policy) as download:
            while not download.complete:
                try:
                    for chunk in self._stream(rpc.READ, download.request(), deadline):
                        download.write(chunk)
                    download.closed()
                except ServiceError as error:
                    time.sleep(download.delay_after(error))
            return download.finish()

    def _run(self, flow: Flow[T]) -> T:
        """Performs the steps of a flow in this thread."""
        with contextlib.closing(flow):
            try:
                step = next(flow)
                while True:
                    try:
                        result = self._perform(step)
                    except (OnnxAuditError, OSError) as error:
                        step = flow.throw(error)
                    else:
                        step = flow.send(result)
            except StopIteration as stop:
                value: T = stop.value
                return value

    def _perform(self, step: Step) -> object:
        if isinstance(step, Call):
            deadline = self._session.deadline(step.rpc)
            return _invoke(lambda: self._method(step.rpc)(step.request, timeout=deadline))
        if isinstance(step, Send):
            return self._send(step)
        if isinstance(step, Sleep):
            time.sleep(step.seconds)
            return None
        return step.function()

    def _send(self, step: Send) -> v1.WriteResponse:
        """Streams an upload; a file that cannot be read any more is an OSError."""
        failures: list[OSError] = []

        def requests() -> Iterator[bytes]:
            try:
                yield from step.requests
            except OSError as error:  # gRPC would only say that iterating failed
                failures.append(error)
                raise

        deadline = self._session.transfer_deadline(step.size)
        try:
            response: v1.WriteResponse = _invoke(
                lambda: self._method(rpc.WRITE)(requests(), timeout=deadline)
            )
        except ServiceError:
            if failures:
                raise failures[0] from None
            raise
        return response

    def _stream(
        self, method: Rpc[RequestT, ResponseT], request: RequestT, deadline: float
    ) -> Generator[ResponseT, None, None]:
        """Yields a call's responses; leaving it early cancels the call."""
        call = self._method(method)(request, timeout=deadline)
        try:
            yield from call
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        finally:
            call.cancel()

    def _pages(self, method: Rpc[Any, ResponseT], request: Message) -> Iterator[ResponseT]:
        while True:
            page = self._run(self._session.call(method, request))
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


def _invoke(function: Callable[[], T]) -> T:
    """Makes a call whose gRPC errors become this package's."""
    try:
        return function()
    except grpc.RpcError as error:
        raise from_rpc_error(error) from error
    except ValueError as error:  # gRPC's way to say that the channel is closed
        raise service_error("CANCELLED", f"the client is closed: {error}") from error
