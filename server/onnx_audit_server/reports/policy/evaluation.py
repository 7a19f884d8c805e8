"""What a policy says of a report: gates, waivers, verdict."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from datetime import datetime

from google.protobuf import timestamp_pb2

from onnx_audit import v1
from onnx_audit_server.reports import assemble
from onnx_audit_server.reports.policy.atoms import fields, mentions
from onnx_audit_server.reports.policy.expression import Data
from onnx_audit_server.reports.policy.figures import Seen, look, verdict_of
from onnx_audit_server.reports.policy.values import plain


def evaluate(
    policy: v1.Policy, report: v1.Report, baseline: v1.Report | None, moment: datetime
) -> v1.PolicyResult:
    """See `policy.evaluate`."""
    data = Data(_variables(policy, report, baseline))
    time = timestamp_pb2.Timestamp()
    time.FromDatetime(moment)
    gates = [_gate(gate, data, policy.waivers, report, time) for gate in policy.gates]
    return v1.PolicyResult(
        verdict=verdict(gates),
        gates=gates,
        policy_display_name=policy.display_name,
        policy_digest=hashlib.sha256(assemble.to_json(policy)).hexdigest(),
        report_digest=report.digest,
        baseline_digest="" if baseline is None else baseline.digest,
        evaluate_time=time,
    )


def verdict(gates: Sequence[v1.GateResult]) -> v1.Verdict.ValueType:
    """FAIL if a blocking gate fails and is not set aside, else INCONCLUSIVE if one is undecided."""
    counted = {
        result.verdict
        for result in gates
        if result.gate.severity != v1.SEVERITY_WARN
        and result.waiver_state != v1.WAIVER_STATE_ACTIVE
    }
    if v1.VERDICT_FAIL in counted:
        return v1.VERDICT_FAIL
    return v1.VERDICT_PASS if counted <= {v1.VERDICT_PASS} else v1.VERDICT_INCONCLUSIVE


def _variables(
    policy: v1.Policy, report: v1.Report, baseline: v1.Report | None
) -> dict[str, object]:
    expressions = [gate.expression for gate in policy.gates]
    names = frozenset().union(*(fields(expression) for expression in expressions))
    variables: dict[str, object] = {"report": plain(report, names.__contains__)}
    if baseline is None:
        return variables
    variables["baseline"] = plain(baseline, names.__contains__)
    if any(mentions(expression, "changes") for expression in expressions):
        # Statistics take long to import, and most policies need none.
        from onnx_audit_server.reports.compare import compare  # noqa: PLC0415

        variables["changes"] = {
            row.path: plain(row) for row in compare(baseline, report).comparisons
        }
    return variables


def _gate(
    gate: v1.Gate,
    data: Data,
    waivers: Sequence[v1.Waiver],
    report: v1.Report,
    time: timestamp_pb2.Timestamp,
) -> v1.GateResult:
    answer = data.evaluate(gate.expression)
    seen = look(gate.expression, data)
    result = v1.GateResult(gate=gate, verdict=verdict_of(answer))
    result.figures.extend(row.figure for row in seen)
    if any(row.undefined for row in seen):
        result.verdict = v1.VERDICT_INCONCLUSIVE
    result.explanation = _explanation(result.verdict, seen, answer.reason)
    waiver = _waiver(gate, waivers, report)
    if waiver is not None:
        result.waiver.CopyFrom(waiver)
        _apply(result, time)
    return result


def _explanation(verdict: v1.Verdict.ValueType, seen: Sequence[Seen], reason: str) -> str:
    """The comparisons that made the verdict, in words."""
    told = [row.text for row in seen if row.figure.verdict == verdict]
    return "; ".join(told) or reason or "; ".join(row.text for row in seen)


def _waiver(gate: v1.Gate, waivers: Sequence[v1.Waiver], report: v1.Report) -> v1.Waiver | None:
    """The waiver for a gate and a report's model that ends last, if there is one."""
    found = [
        waiver for waiver in waivers if waiver.gate_id == gate.id and is_for(waiver.model, report)
    ]
    return max(found, key=lambda waiver: waiver.expire_time.ToNanoseconds(), default=None)


def is_for(model: str, report: v1.Report) -> bool:
    """Whether a digest, or a pattern of display names with "*", is that of a report's model."""
    pattern = ".*".join(re.escape(part) for part in model.split("*"))
    named = re.fullmatch(pattern, report.execution.model_display_name, re.DOTALL) is not None
    return model == report.model.sha256 or named


def _apply(result: v1.GateResult, time: timestamp_pb2.Timestamp) -> None:
    """Says what the waiver of a gate's result does."""
    waiver = result.waiver
    ends = waiver.expire_time.ToJsonString()
    if time.ToNanoseconds() < waiver.expire_time.ToNanoseconds():
        result.waiver_state = v1.WAIVER_STATE_ACTIVE
        if result.verdict != v1.VERDICT_PASS:
            result.explanation += f"; set aside until {ends} by {waiver.owner}: {waiver.reason}"
        return
    result.waiver_state = v1.WAIVER_STATE_EXPIRED
    if result.verdict != v1.VERDICT_PASS:
        result.verdict = v1.VERDICT_FAIL
        result.explanation += f"; the waiver of {waiver.owner} has ended on {ends}"
