"""`onnx-audit gate` and `policy apply` against a service in this process."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import grpc
import numpy as np
import pytest
from click.testing import CliRunner, Result
from tests.client.clients import FAST
from tests.client.fake_service import FakeService, rich_status
from tests.client.models import write_model

from onnx_audit import Client, v1
from onnx_audit.cli import options
from onnx_audit.cli.app import cli
from onnx_audit.cli.output import as_dict, to_json

POLICY = """\
display_name: mine
gates:
  - id: first
    expression: report.parity.passed
  - id: second
    expression: report.parity.passed
    message: "50 % off: \\nnot good"
  - {id: third, severity: warn, expression: report.parity.passed}
  - {id: fourth, expression: report.parity.passed}
"""
BUILD_VARIABLES = ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY")


@pytest.fixture
def folder(tmp_path: Path, service: FakeService, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a model, probes and a policy; the service says that a gate fails."""
    monkeypatch.chdir(tmp_path)
    for name in BUILD_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(options, "Client", functools.partial(Client, retries=FAST))
    write_model(tmp_path / "m.onnx")
    np.savez(tmp_path / "p.npz", inputs=np.zeros((4, 6), np.float32), labels=np.arange(4))
    (tmp_path / "policy.yaml").write_text(POLICY)
    service.result = failing()
    service.events = [
        v1.AuditEvent(
            sequence=1,
            state_changed=v1.AuditEvent.StateChanged(state=v1.AUDIT_STATE_SUCCEEDED),
        )
    ]
    return tmp_path


def failing() -> v1.PolicyResult:
    """One gate that holds, one that fails, a warning that is undecided, one that is set aside."""
    rows = (
        ("first", v1.SEVERITY_BLOCK, v1.VERDICT_PASS, "", v1.WAIVER_STATE_UNSPECIFIED),
        ("second", v1.SEVERITY_BLOCK, v1.VERDICT_FAIL, "50 % off: \nnot good", 0),
        ("third", v1.SEVERITY_WARN, v1.VERDICT_INCONCLUSIVE, "", 0),
        ("fourth", v1.SEVERITY_BLOCK, v1.VERDICT_FAIL, "", v1.WAIVER_STATE_ACTIVE),
    )
    result = v1.PolicyResult(
        verdict=v1.VERDICT_FAIL, policy_display_name="mine", baseline_digest="b" * 64
    )
    for name, severity, verdict, message, state in rows:
        row = result.gates.add(
            verdict=verdict, explanation="so it is", waiver_state=v1.WaiverState.ValueType(state)
        )
        row.gate.CopyFrom(v1.Gate(id=name, severity=severity, message=message))
        row.figures.add(
            expression="report.x.value",
            value=v1.Estimate(value=0.25),
            relation=v1.GATE_RELATION_AT_LEAST,
            threshold=0.5,
            margin=-0.25,
            baseline=v1.Estimate(value=0.125),
        )
    return result


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def run_gate(address: str, *more: object) -> Result:
    files = ("m.onnx", "--probes", "p.npz", "--box", "0,1", "--policy", "policy.yaml")
    return invoke("gate", *files, "--server", address, *more)


@pytest.mark.parametrize(
    ("verdict", "status"),
    [
        (v1.VERDICT_PASS, 0),
        (v1.VERDICT_FAIL, 1),
        (v1.VERDICT_INCONCLUSIVE, 2),
        (v1.VERDICT_UNSPECIFIED, 3),
    ],
)
@pytest.mark.usefixtures("folder")
def test_verdicts_are_exit_statuses(
    service: FakeService, address: str, verdict: v1.Verdict.ValueType, status: int
) -> None:
    """PASS is 0, FAIL 1, INCONCLUSIVE 2, and no verdict at all is the service's fault."""
    service.result.verdict = verdict
    assert run_gate(address).exit_code == status


@pytest.mark.parametrize(
    ("policy", "more", "auditors"),
    [
        ("strict", (), {"distortion", "lipschitz"}),
        ("baseline", (), {"distortion"}),
        ("strict", ("--auditors", "distortion"), {"distortion"}),
    ],
)
@pytest.mark.usefixtures("folder")
def test_the_auditors_that_the_gates_look_at_run(
    service: FakeService, address: str, policy: str, more: tuple[str, ...], auditors: set[str]
) -> None:
    """A ready-made policy is not undecided for want of a section, unless an option says so."""
    run_gate(address, "--policy", policy, *more)
    (audit,) = service.audits.values()
    assert {field.name for field, _ in audit.auditors.ListFields()} == auditors


@pytest.mark.usefixtures("folder")
def test_everything_that_goes_wrong_blocks(service: FakeService, address: str) -> None:
    """Wrong usage, files and policies are 2, trouble with the service is 3; nothing is 0."""
    assert run_gate(address, "--policy", "nowhere.yaml").exit_code == 2
    assert run_gate(address, "--format", "pdf").exit_code == 2
    assert run_gate(address, "--gitlab-code-quality", "/proc/none").exit_code == 2
    Path("bad.yaml").write_text(POLICY.replace("message", "mesage"))
    result = run_gate(address, "--policy", "bad.yaml")
    assert result.exit_code == 2
    assert "bad.yaml:7:5: gates[1]: unknown field 'mesage'" in result.stderr
    invalid = {"policy.gates[1].expression": "line 1, column 8: undefined field"}
    service.faults["EvaluatePolicy"] = [
        rich_status(grpc.StatusCode.INVALID_ARGUMENT, "no", fields=invalid)
    ]
    service.calls.clear()
    result = run_gate(address)
    assert result.exit_code == 2
    assert "policy.yaml:6:24: gates[1].expression: undefined field" in result.stderr
    assert service.calls == ["EvaluatePolicy"]  # nothing was uploaded for it
    service.faults["CreateAudit"] = [rich_status(grpc.StatusCode.INTERNAL, "broken")]
    assert run_gate(address).exit_code == 3
    service.faults["RenderReport"] = [rich_status(grpc.StatusCode.UNIMPLEMENTED, "no HTML")]
    result = run_gate(address, "--format", "html")
    assert result.exit_code == 3
    assert "Verdict: FAIL" in result.stdout  # said all the same


def test_documents_are_written_where_they_were_asked_for(
    folder: Path, service: FakeService, address: str
) -> None:
    """Each form has its file, in the folder of the report."""
    run_gate(address, "--format", "html,markdown,sarif,junit", "--out", "out")
    for name, form in (
        ("report.html", "HTML"),
        ("report.md", "MARKDOWN"),
        ("report.sarif", "SARIF"),
        ("report.junit.xml", "JUNIT"),
    ):
        assert (folder / "out" / name).read_text() == f"REPORT_FORMAT_{form}"
    assert (folder / "out" / "report.json").is_file()
    rendered = [one for one in service.requests if isinstance(one, v1.RenderReportRequest)]
    assert {request.name for request in rendered} == {"audits/1/report"}
    assert not any(request.HasField("policy") for request in rendered)  # the audit has its result


def test_github_gets_annotations_and_a_summary(
    folder: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command of the workflow per gate that does not hold, escaped, at the gate's line."""
    assert "::" not in run_gate(address).stdout
    summary = folder / "summary.md"
    summary.write_text("before\n")
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    result = run_gate(address)
    commands = [line for line in result.stdout.splitlines() if line.startswith("::")]
    assert commands == [
        "::error title=Gate second,file=policy.yaml,line=5::Gate second does not hold. "
        "50 %25 off: %0Anot good (so it is)",
        "::warning title=Gate third,file=policy.yaml,line=8::Gate third could not be decided. "
        "(so it is)",
    ]
    assert summary.read_text() == "before\nREPORT_FORMAT_MARKDOWN\n"
    result = run_gate(address, "--json", "--policy", "strict")
    assert json.loads(result.stdout) == as_dict(failing())
    assert "::error title=Gate second::Gate second" in result.stderr


def test_gitlab_gets_code_quality(folder: Path, address: str) -> None:
    """Gates that do not hold are entries with what GitLab requires of each."""
    run_gate(address, "--gitlab-code-quality", "new/quality.json")
    entries = json.loads((folder / "new" / "quality.json").read_text())
    assert [(row["check_name"], row["severity"]) for row in entries] == [
        ("second", "blocker"),
        ("third", "minor"),
    ]
    assert entries[0]["location"] == {"path": "policy.yaml", "lines": {"begin": 5}}
    assert len({row["fingerprint"] for row in entries}) == 2
    assert all(row["description"] for row in entries)


def test_baselines_are_reports_audits_or_models(
    folder: Path, service: FakeService, address: str
) -> None:
    """A report is uploaded, an audit named, a model audited first in the same way."""
    (folder / "older").mkdir()
    report = v1.Report(digest="d")
    (folder / "older" / "report.json").write_text(to_json(as_dict(report)))

    def audits(*arguments: object) -> list[v1.Audit]:
        service.requests.clear()
        run_gate(address, "--norms", "linf", *arguments)
        return [one.audit for one in service.requests if isinstance(one, v1.CreateAuditRequest)]

    (one,) = audits("--baseline", "older")
    assert one.baseline.startswith("blobs/")
    (one,) = audits("--baseline", "audits/x")
    assert one.baseline == "audits/x/report"
    (folder / "older.onnx").write_bytes((folder / "m.onnx").read_bytes())
    first, second = audits("--baseline", "older.onnx")
    assert not first.HasField("policy")
    assert first.auditors == second.auditors
    assert second.baseline == f"audits/{len(service.audits) - 1}/report"
    first, _ = audits("--baseline", "models/" + "7" * 64)
    assert first.model == "models/" + "7" * 64
    assert run_gate(address, "--baseline", "missing.json").exit_code == 2


def test_reports_that_exist_are_held_against_other_policies(
    folder: Path, service: FakeService, address: str
) -> None:
    """Policy apply evaluates and renders, and starts no audit."""
    report = v1.Report(digest="d")
    (folder / "report.json").write_text(to_json(as_dict(report)))
    result = invoke(
        *("policy", "apply", "policy.yaml", "report.json", "--baseline", "audits/3"),
        *("--format", "junit", "--out", "out", "--server", address),
    )
    assert result.exit_code == 1, result.output
    assert service.calls == ["EvaluatePolicy", "RenderReport"]
    evaluated, rendered = service.requests
    assert isinstance(evaluated, v1.EvaluatePolicyRequest)
    assert isinstance(rendered, v1.RenderReportRequest)
    assert evaluated.report == rendered.report == report
    assert evaluated.policy == rendered.policy
    assert evaluated.baseline == rendered.baseline == "audits/3/report"
    for expected in ("second", "(set aside)", ">= 0.5", "-0.25", "0.125", "Verdict: FAIL"):
        assert expected in result.stdout


def test_policies_are_checked_and_shown(folder: Path, address: str) -> None:
    """Check says that there is no mistake, show prints YAML to start from."""
    result = invoke("policy", "check", "policy.yaml", "--server", address)
    assert (result.exit_code, result.stdout) == (
        0,
        "policy.yaml: 4 gates, 0 waivers, no mistakes\n",
    )
    (folder / "mine.yaml").write_text(invoke("policy", "show", "strict").stdout)
    assert invoke("policy", "check", "mine.yaml", "--server", address).exit_code == 0


@pytest.mark.usefixtures("folder")
def test_comparisons_are_tables_or_json(service: FakeService, address: str) -> None:
    """Every figure with both values, the difference and what it means."""
    service.comparison = v1.CompareReportsResponse(
        comparisons=[
            v1.Comparison(
                label="median L2 distortion",
                baseline=v1.Estimate(value=0.5),
                candidate=v1.Estimate(value=0.25),
                difference=v1.Estimate(value=-0.25),
                movement=v1.MOVEMENT_WORSE,
            )
        ],
        notes=["Settings [differ]."],
        candidate_only=["lipschitz.network[L2].upper"],
    )
    result = invoke("compare", "audits/1", "audits/2", "--server", address)
    assert result.exit_code == 0
    for expected in ("median L2", "0.5", "-0.25", "worse", "[differ]", "lipschitz.network[L2]"):
        assert expected in result.stdout
    result = invoke("compare", "audits/1", "audits/2", "--server", address, "--json")
    assert json.loads(result.stdout) == as_dict(service.comparison)
