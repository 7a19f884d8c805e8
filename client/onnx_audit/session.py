"""What both clients know and decide alike: deadlines, retries, and the flows of their methods."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

from google.protobuf.message import Message

from onnx_audit import flows, report_calls, rpc, v1
from onnx_audit.arrays import put_unit_array, unit_arrays
from onnx_audit.configs import merged
from onnx_audit.errors import ConfigError
from onnx_audit.files import Progress
from onnx_audit.flows import Flow
from onnx_audit.policies import PolicyLike, as_loaded
from onnx_audit.probes import Probes, ProbesLike, load_probes
from onnx_audit.report_calls import ReportLike, report_name
from onnx_audit.requests import AuditorsLike, create_audit_request, is_content_name
from onnx_audit.retries import RetryPolicy
from onnx_audit.rpc import RequestT, ResponseT, Rpc

ModelLike: TypeAlias = v1.Model | str | os.PathLike[str]
ProbeSetLike: TypeAlias = v1.ProbeSet | ProbesLike

# A watch that is silent is opened anew after this long, so that a dead connection is found out.
_WATCH_SECONDS: Final = 600.0


@dataclass(frozen=True)
class AuditArguments:
    """The arguments of `audit` besides model and probes."""

    auditors: AuditorsLike
    input_spec: v1.InputSpec | None
    seed: int
    timeout: float | None
    display_name: str | None
    request_id: str | None
    linear_head: v1.LinearHeadConfig | None = None
    policy: PolicyLike | None = None
    baseline: ReportLike | None = None
    fresh: bool = False


class Session:
    """The state of a client that is not its connection.

    Args:
        timeout: Deadline of one attempt of one call in seconds.
        policy: When calls are tried again.
    """

    def __init__(self, timeout: float, policy: RetryPolicy) -> None:
        if timeout <= 0:
            raise ConfigError(f"timeout is {timeout} seconds; expected a positive number")
        self._timeout = timeout
        self.policy = policy
        self.watch_deadline = _WATCH_SECONDS
        # What sources said about the layout of probe sets that were uploaded here.
        self._layouts: dict[str, v1.InputSpec] = {}

    def deadline(self, method: Rpc[Any, Any]) -> float:
        """Seconds that one attempt of a call may take."""
        return self._timeout * method.patience

    def transfer_deadline(self, size: int) -> float:
        """Seconds that an upload or download of so many bytes may take before it is resumed."""
        return self._timeout + size / flows.SLOWEST_BYTES_PER_SECOND

    def call(self, method: Rpc[RequestT, ResponseT], request: RequestT) -> Flow[ResponseT]:
        """A call that is safe to repeat."""
        return flows.call(method, request, self.policy)

    def upload_model(
        self,
        path: Path,
        *,
        display_name: str | None = None,
        tags: Mapping[str, str] | None = None,
        progress: Progress | None = None,
    ) -> Flow[v1.Model]:
        """The upload of a model."""
        return flows.upload_model(
            path, self.policy, display_name=display_name, tags=tags, progress=progress
        )

    def upload_probes(self, probes: Probes, progress: Progress | None = None) -> Flow[v1.ProbeSet]:
        """The upload of probes; what they say about their layout is kept for `audit`."""
        probe_set = yield from flows.upload_probes(probes, self.policy, progress=progress)
        if probes.input_spec is not None:
            self._layouts[probe_set.name] = probes.input_spec
        return probe_set

    def audit(
        self, model: ModelLike, probes: ProbeSetLike, arguments: AuditArguments
    ) -> Flow[v1.Audit]:
        """The start of an audit, with the uploads that it needs."""
        # Wrong arguments should not cost an upload.
        given = arguments.policy
        policy = None if given is None else (yield from flows.work(lambda: as_loaded(given)))
        request = create_audit_request(
            "",
            "",
            auditors=arguments.auditors,
            input_spec=arguments.input_spec,
            seed=arguments.seed,
            timeout=arguments.timeout,
            display_name=arguments.display_name,
            request_id=arguments.request_id,
            linear_head=arguments.linear_head,
            policy=None if policy is None else policy.policy,
            fresh=arguments.fresh,
        )
        if arguments.baseline is not None:
            request.audit.baseline = yield from self._report_name(arguments.baseline)
        request.audit.model = yield from self._model_name(model)
        request.audit.probe_set = yield from self._probe_set_name(probes)
        for peer in request.audit.auditors.transfer.peers:
            peer.model = yield from self._model_name(peer.model)
        if request.audit.auditors.HasField("units"):
            yield from self._unit_files(request.audit.auditors.units)
        layout = self._layouts.get(request.audit.probe_set)
        if layout is not None:  # what the caller says stands in for what the source says
            request.audit.input_spec.CopyFrom(merged(layout, request.audit.input_spec))
        with report_calls.explained(policy):
            return (yield from self.call(rpc.CREATE_AUDIT, request))

    def _report_name(self, report: ReportLike) -> Flow[str]:
        """The name of a report; one that the caller holds is uploaded first."""
        if not isinstance(report, v1.Report):
            return report_name(report)
        return (yield from flows.upload_report(report, self.policy))

    def _unit_files(self, config: v1.UnitsConfig) -> Flow[None]:
        """Uploads the files that a configuration of `units` names, and puts their names there."""
        for field, named in unit_arrays(config).items():
            if not is_content_name(named, "blobs"):
                name = yield from flows.upload_unit_array(
                    field, Path(named), self.policy, progress=None
                )
                put_unit_array(config, field, name)
        if config.embedding.model:
            config.embedding.model = yield from self._model_name(config.embedding.model)

    def _model_name(self, model: ModelLike) -> Flow[str]:
        if isinstance(model, v1.Model):
            return model.name
        if isinstance(model, str) and is_content_name(model, "models"):
            return model
        return (yield from self.upload_model(Path(model))).name

    def _probe_set_name(self, probes: ProbeSetLike) -> Flow[str]:
        if isinstance(probes, v1.ProbeSet):
            return probes.name
        if isinstance(probes, str) and is_content_name(probes, "probes"):
            return probes
        loaded = yield from flows.work(lambda: load_probes(probes))
        return (yield from self.upload_probes(loaded)).name

    @staticmethod
    def following(request: Message, page: Message) -> Message | None:
        """The request of the page after this one, or None after the last."""
        token: str = page.next_page_token  # type: ignore[attr-defined] # every list has one
        if not token:
            return None
        following = type(request)()
        following.CopyFrom(request)
        following.page_token = token  # type: ignore[attr-defined] # every list has one
        return following
