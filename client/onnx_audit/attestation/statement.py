"""What an attestation states: an in-toto Statement v1 with the predicate test-result v0.1.

See https://github.com/in-toto/attestation/blob/main/spec/predicates/test-result.md. Subjects are
the files that the model consists of; the configuration names, by digest, what the verdict came
from.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from google.protobuf import json_format
from google.protobuf.message import Message
from in_toto_attestation.predicates.test_result.v0 import test_result_pb2  # type: ignore[import-untyped]
from in_toto_attestation.v1.resource_descriptor import ResourceDescriptor  # type: ignore[import-untyped]
from in_toto_attestation.v1.statement import Statement  # type: ignore[import-untyped]

from onnx_audit import v1
from onnx_audit.attestation.envelope import NotVerified
from onnx_audit.errors import ConfigError
from onnx_audit.files import local_blob
from onnx_audit.onnx_files import external_locations

PREDICATE_TYPE: Final = "https://in-toto.io/attestation/test-result/v0.1"
ONNX_FILE: Final = "model.onnx"
"""What the ONNX file is called among the subjects, whatever it is called where it lies."""
CLOCK_SKEW: Final = timedelta(minutes=5)
"""How far in the future an audit may have ended."""
_AUDITED: Final = "auditEndTime"


def canonical_json(message: Message) -> bytes:
    """Proto3 JSON with original field names, keys sorted, no white space."""
    fields = json_format.MessageToDict(message, preserving_proto_field_name=True)
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def digest(message: Message) -> str:
    """SHA-256 of a message's canonical JSON, in hexadecimal."""
    return hashlib.sha256(canonical_json(message)).hexdigest()


def report_digest(report: v1.Report) -> str:
    """The digest that a report's figures have, whatever it says itself."""
    stable = v1.Report()
    stable.CopyFrom(report)
    stable.ClearField("digest")
    stable.ClearField("execution")
    return digest(stable)


def make(report: v1.Report, result: v1.PolicyResult) -> bytes:
    """Writes the statement of what a policy said of a report.

    Raises:
        ConfigError: There is no verdict, or report and verdict do not belong together.
    """
    _check(report, result)
    subjects = [
        ResourceDescriptor(name=file.path or ONNX_FILE, digest={"sha256": file.sha256}).pb
        for file in report.model.files
    ]
    statement = Statement(subjects, PREDICATE_TYPE, _predicate(report, result))
    try:
        statement.validate()
    except ValueError as error:
        raise ConfigError(f"the report cannot be attested: {error}") from None
    return canonical_json_of(json_format.MessageToDict(statement.pb))


def canonical_json_of(fields: dict[str, Any]) -> bytes:
    """JSON with sorted keys and no white space."""
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _check(report: v1.Report, result: v1.PolicyResult) -> None:
    if not result.verdict:
        raise ConfigError("no policy was applied, so there is no verdict to attest; name a policy")
    found = report_digest(report)
    if report.digest != found:
        raise ConfigError(
            f"the report says that its digest is {report.digest or 'empty'}, and it is {found}: "
            "it was altered, or written by another version"
        )
    if result.report_digest != found:
        raise ConfigError(
            f"the verdict is of a report with the digest {result.report_digest}, not {found}"
        )
    if not report.model.files:
        raise ConfigError("the report does not name the model's files; audit the model again")


def _predicate(report: v1.Report, result: v1.PolicyResult) -> dict[str, Any]:
    configuration = [
        ("probes", report.probes.sha256, {}),
        ("policy", result.policy_digest, {"displayName": result.policy_display_name}),
        ("report", report.digest, {_AUDITED: _time_text(report.execution.end_time)}),
        ("environment", digest(report.provenance), {}),
    ]
    if result.baseline_digest:
        configuration.append(("baseline", result.baseline_digest, {}))
    predicate = test_result_pb2.TestResult(
        result=_result(result),
        configuration=[
            ResourceDescriptor(
                name=name,
                digest={"sha256": sha256},
                annotations={key: value for key, value in annotations.items() if value},
            ).pb
            for name, sha256, annotations in configuration
        ],
        passed_tests=[gate.gate.id for gate in result.gates if _outcome(gate) == "passed"],
        warned_tests=[gate.gate.id for gate in result.gates if _outcome(gate) == "warned"],
        failed_tests=[gate.gate.id for gate in result.gates if _outcome(gate) == "failed"],
    )
    fields: dict[str, Any] = json_format.MessageToDict(predicate)
    return fields


def _result(result: v1.PolicyResult) -> str:
    """PASSED, WARNED or FAILED: what could not be decided has not passed."""
    outcomes = {_outcome(gate) for gate in result.gates}
    if result.verdict != v1.VERDICT_PASS:
        return "FAILED"
    if "failed" in outcomes:
        raise ConfigError("the verdict is PASS although a blocking gate does not hold")
    return "WARNED" if "warned" in outcomes else "PASSED"


def _outcome(gate: v1.GateResult) -> str:
    if gate.verdict == v1.VERDICT_PASS:
        return "passed"
    set_aside = gate.waiver_state == v1.WAIVER_STATE_ACTIVE
    return "warned" if set_aside or gate.gate.severity == v1.SEVERITY_WARN else "failed"


def _time_text(moment: Any) -> str:  # noqa: ANN401 - a Timestamp; its stubs are incomplete
    return str(moment.ToJsonString()) if moment.seconds else ""


@dataclass(frozen=True)
class Attested:
    """What a verified statement says.

    Attributes:
        result: PASSED, WARNED or FAILED.
        subjects: Digests of the model's files by name.
        configuration: Digests of probes, policy, report and environment by name.
        audited: When the audit ended, if the statement says so.
        warned: Gates that did not hold and do not block.
        failed: Gates that block.
    """

    result: str
    subjects: dict[str, str]
    configuration: dict[str, str]
    audited: datetime | None
    warned: list[str]
    failed: list[str]


def read(payload: bytes) -> Attested:
    """Reads the payload of a verified envelope.

    Raises:
        NotVerified: It is not a statement of this kind.
    """
    statement, predicate = Statement([], "", {}), test_result_pb2.TestResult()
    try:
        json_format.Parse(payload, statement.pb, ignore_unknown_fields=True)
        statement.validate()
    except (json_format.ParseError, UnicodeDecodeError, ValueError) as error:
        raise NotVerified(f"the payload is not an in-toto statement: {error}") from None
    if statement.pb.predicate_type != PREDICATE_TYPE:
        raise NotVerified(
            f"the statement is of the type {statement.pb.predicate_type!r}, not {PREDICATE_TYPE!r}"
        )
    try:
        fields = json_format.MessageToDict(statement.pb.predicate)
        json_format.ParseDict(fields, predicate, ignore_unknown_fields=True)
    except json_format.ParseError as error:
        raise NotVerified(f"the predicate is not a test result: {error}") from None
    return Attested(
        result=predicate.result,
        subjects={subject.name: subject.digest["sha256"] for subject in statement.pb.subject},
        configuration={part.name: part.digest["sha256"] for part in predicate.configuration},
        audited=_audited(predicate),
        warned=list(predicate.warned_tests),
        failed=list(predicate.failed_tests),
    )


def _audited(predicate: Any) -> datetime | None:  # noqa: ANN401 - a TestResult; it has no stubs
    for part in predicate.configuration:
        if part.name == "report" and _AUDITED in part.annotations:
            try:
                moment = datetime.fromisoformat(part.annotations[_AUDITED])
            except (TypeError, ValueError):
                return None
            return moment if moment.tzinfo else None
    return None


def model_digests(path: Path) -> dict[str, str]:
    """Digests of the files of a model on this machine, by subject name.

    Raises:
        ModelFileError: The ONNX file is missing, or is not ONNX.
    """
    files = {location: path.parent / location for location in external_locations(path)}
    return {
        name: local_blob(file).sha256 if file.is_file() else ""
        for name, file in {ONNX_FILE: path, **files}.items()
    }


def require_model(attested: Attested, found: dict[str, str]) -> None:
    """Checks that a statement is about these files, all of them and no others.

    Raises:
        NotVerified: It is about another model.
    """
    for name, sha256 in found.items():
        stated = attested.subjects.get(name)
        if stated != sha256:
            was = f"the attestation is about {stated}" if stated else "the attestation lacks it"
            raise NotVerified(f"{name} is {sha256 or 'missing'}; {was}")
    if missing := sorted(attested.subjects.keys() - found.keys()):
        raise NotVerified(f"the attestation is also about {', '.join(missing)}")


def require_pass(attested: Attested) -> None:
    """Checks that the verdict is PASS; gates that only warn may have failed.

    Raises:
        NotVerified: It is another one.
    """
    if attested.result not in {"PASSED", "WARNED"} or attested.failed:
        gates = f": {', '.join(attested.failed)}" if attested.failed else ""
        raise NotVerified(f"the result is {attested.result or 'missing'}{gates}")


def require_policy(attested: Attested, policy: v1.Policy) -> None:
    """Checks that the verdict is that of a policy.

    Raises:
        NotVerified: It is that of another one.
    """
    wanted, stated = digest(policy), attested.configuration.get("policy")
    if stated != wanted:
        raise NotVerified(f"the verdict is of the policy {stated}; this one is {wanted}")


def require_age(attested: Attested, seconds: float) -> None:
    """Checks that the audit ended not longer ago than so many seconds.

    Raises:
        NotVerified: It did, or nothing is known of it.
    """
    if attested.audited is None:
        raise NotVerified("the attestation does not say when the audit ended")
    age = datetime.now(UTC) - attested.audited
    if age > timedelta(seconds=seconds):
        raise NotVerified(f"the audit ended {attested.audited.isoformat()}, {_age_text(age)} ago")
    if age < -CLOCK_SKEW:
        raise NotVerified(f"the audit ends in the future, {attested.audited.isoformat()}")


def _age_text(age: timedelta) -> str:
    return f"{age.days} days" if age.days else f"{age.seconds / 3600:.1f} hours"
