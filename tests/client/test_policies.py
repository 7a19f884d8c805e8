"""Policies from YAML: every mistake with its place, and those that come with the package."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from tests.client.fake_service import FakeService, rich_status

from onnx_audit import ConfigError, InvalidRequest, v1
from onnx_audit.policies import READY_MADE, LoadedPolicy, load_policy, parse_policy, policy_text

WHOLE = """\
display_name: mine
gates:
  - id: one
    severity: warn
    expression: report.parity.passed
    message: told
  - id: two
    expression: |
      report.parity.passed &&

        report.wrong
  - id: three
    expression: >-
      report.parity.passed &&
      report.wrong
  - id: four
    expression: "report.wrong"
  - {id: five, expression: report.parity.passed
      && report.wrong}
waivers:
  - gate_id: one
    model: "fraud-*"
    reason: known
    owner: ann
    expire_time: 2026-12-31
"""


def test_fields_of_the_yaml_are_those_of_the_schema() -> None:
    """Gates block unless they say otherwise; a date means its end in UTC."""
    policy = parse_policy(WHOLE, "p.yaml").policy
    assert policy.display_name == "mine"
    assert policy.gates[0] == v1.Gate(
        id="one",
        severity=v1.SEVERITY_WARN,
        expression="report.parity.passed",
        message="told",
    )
    assert policy.gates[1].severity == v1.SEVERITY_BLOCK
    waiver = policy.waivers[0]
    assert (waiver.gate_id, waiver.model, waiver.owner) == ("one", "fraud-*", "ann")
    assert waiver.expire_time.ToDatetime(UTC) == datetime(2027, 1, 1, tzinfo=UTC)
    moment = parse_policy(WHOLE.replace("2026-12-31", "2026-12-31T10:00:00+02:00"), "p").policy
    assert moment.waivers[0].expire_time.ToDatetime(UTC) == datetime(2026, 12, 31, 8, tzinfo=UTC)
    assert yaml.safe_load(WHOLE)["gates"][1]["expression"] == policy.gates[1].expression


@pytest.mark.parametrize(
    ("old", "new", "mistake"),
    [
        ("severity: warn", "severity: error", "4:15: gates[0].severity: 'error'; expected block"),
        ("    message:", "    mesage:", "6:5: gates[0]: unknown field 'mesage'; did you mean"),
        ("- id: two\n    exp", "- exp", "7:5: gates[1]: id is required"),
        ("id: one\n", "id: 1\n", "3:9: gates[0].id: expected text, found a number"),
        ("    message: told\n", "    id: one\n", "6:5: gates[0]: id is given twice"),
        ("gates:\n  - id: one", "gates: yes\nx:\n  - id: one", "2:8: gates: expected a list"),
        ("2026-12-31", "2026-12-32", "25:18: waivers[0].expire_time: '2026-12-32'; expected a"),
        ("2026-12-31", "2026-12-31T10:00:00", "25:18: waivers[0].expire_time: "),
        (
            "expression: report.parity.passed\n",
            "expression: !report.parity.passed\n",
            "5:17: gates[0].expression: expected text, found the tag !report.parity.passed (text",
        ),
        ("    owner: ann\n", "", "21:5: waivers[0]: owner is required"),
        ("display_name: mine", "display_name: [mine]", "1:15: display_name: expected text"),
        ("    message: told", "    message: 'told", ": not YAML: "),
        (WHOLE, "", "1:1: the file is empty"),
        (WHOLE, "- 1", "1:1: the policy: expected fields (display_name, gates, waivers), found a"),
    ],
)
def test_mistakes_have_line_and_column(old: str, new: str, mistake: str) -> None:
    """What is unknown, missing, double or of the wrong kind is named with its place."""
    assert old in WHOLE
    with pytest.raises(ConfigError, match=r"^p\.yaml:\d+:\d+: ") as caught:
        parse_policy(WHOLE.replace(old, new, 1), "p.yaml")
    assert mistake in str(caught.value)


@pytest.mark.parametrize(
    ("gate", "line", "column", "expected"),
    [
        (0, 1, 8, "5:24"),
        (1, 3, 9, "11:15"),
        (2, 1, 31, "15:13"),
        (3, 1, 7, "17:24"),
        (4, 1, 31, "19:16"),
    ],
)
def test_places_in_expressions_become_places_in_the_file(
    service: FakeService, client: Any, gate: int, line: int, column: int, expected: str
) -> None:
    """The character that the service names is found again, whatever way the YAML is written in."""
    loaded = parse_policy(WHOLE, "p.yaml")
    content = loaded.policy.gates[gate].expression.splitlines()[line - 1]
    field, text = f"policy.gates[{gate}].expression", f"line {line}, column {column}: undefined"
    service.faults["EvaluatePolicy"] = [
        rich_status(grpc.StatusCode.INVALID_ARGUMENT, "no", fields={field: text})
    ]
    with pytest.raises(ConfigError) as caught:
        client.check_policy(loaded)
    assert str(caught.value) == f"p.yaml:{expected}: gates[{gate}].expression: undefined"
    row, place = (int(number) for number in expected.split(":"))
    rest = content[column - 1 :].split(" &&")[0].rstrip("}")
    assert WHOLE.splitlines()[row - 1][place - 1 :].startswith(rest)


def test_errors_about_other_fields_stay_what_they_are(service: FakeService, client: Any) -> None:
    """Only mistakes of the policy become mistakes of the file."""
    status = rich_status(grpc.StatusCode.INVALID_ARGUMENT, "no", fields={"name": "no report"})
    service.faults["EvaluatePolicy"] = [status]
    with pytest.raises(InvalidRequest):
        client.evaluate_policy("audits/1", parse_policy(WHOLE, "p.yaml"))


def test_ready_made_policies_are_complete() -> None:
    """Each can be had by name, as text and parsed, and every gate tells people what it means."""
    for name in READY_MADE:
        loaded = load_policy(name)
        assert loaded.policy == parse_policy(policy_text(name), name).policy
        assert loaded.policy.display_name == name
        assert all(gate.message for gate in loaded.policy.gates)
    with pytest.raises(ConfigError, match="ready-made"):
        load_policy("strickt")
    with pytest.raises(ConfigError, match="baseline, strict, regression-only"):
        policy_text("strickt")


def test_calls_take_reports_by_name_or_whole(service: FakeService, client: Any) -> None:
    """A report goes as it is, an audit by its report's name; a baseline of an audit is uploaded."""
    report = v1.Report(digest="d")
    policy = LoadedPolicy(v1.Policy(display_name="x"), "p", {})
    client.evaluate_policy(report, policy, "audits/7")
    client.evaluate_policy(v1.Audit(name="audits/8"), policy.policy, report)
    client.compare("audits/1", report)
    client.compare(report, "audits/1/report")
    client.render("1", v1.REPORT_FORMAT_HTML, policy=policy, baseline=report)
    first, second, third, fourth, fifth = service.requests
    assert first == v1.EvaluatePolicyRequest(
        report=report, policy=policy.policy, baseline="audits/7/report"
    )
    assert second == v1.EvaluatePolicyRequest(
        name="audits/8/report", policy=policy.policy, baseline_report=report
    )
    assert third == v1.CompareReportsRequest(baseline="audits/1/report", candidate_report=report)
    assert fourth == v1.CompareReportsRequest(baseline_report=report, candidate="audits/1/report")
    assert fifth == v1.RenderReportRequest(
        name="audits/1/report",
        format=v1.REPORT_FORMAT_HTML,
        policy=policy.policy,
        baseline_report=report,
    )
    audit = client.audit("models/" + "1" * 64, "probes/" + "2" * 64, policy=policy, baseline=report)
    assert audit.policy == policy.policy
    name, digest = audit.baseline.split("/")
    assert name == "blobs"
    assert digest in service.blobs


def test_a_policy_may_be_a_file(tmp_path: Path, client: Any) -> None:
    """Wherever a policy is taken, so are the path of one and the name of a ready-made one."""
    path = tmp_path / "p.yaml"
    path.write_text(WHOLE)
    assert client.check_policy(path) == parse_policy(WHOLE, "p").policy
    assert client.check_policy("strict").display_name == "strict"
    with pytest.raises(ConfigError, match=f"{tmp_path}/none"):
        client.check_policy(tmp_path / "none")
