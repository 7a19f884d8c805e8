"""Markdown, SARIF, JUnit and JSON: valid by other parsers, and true to what the policy says."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as XmlTree

import jsonschema
import pytest
from google.protobuf import json_format
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from tests.client.reports import full_report
from tests.server.reports.documents import (
    HOSTILE,
    document,
    gate,
    image_report,
    policy_result,
)
from tests.server.reports.test_html import Reader

from onnx_audit import v1
from onnx_audit_server.reports import formats, gates, junit, markdown, sarif
from onnx_audit_server.reports.document import Document
from onnx_audit_server.reports.words import clean, number
from onnx_audit_server.store.blobs import BlobStore

TEXTS = st.text(max_size=60) | st.sampled_from(
    ["@someone", "#12", "https://example.org", "www.example.org", "a|b", "`x`", "<b>x</b>", "_a_",
     "&lt;", "\\*", "~~x~~", "$x$", "- a", "1. a", "![x](y)", "a\nb", "::error::", "]]>"]
)  # fmt: skip


def parsed_sarif(*rows: v1.GateResult, folder: Path, model: str = "scorer") -> dict[str, Any]:
    report = full_report()
    report.execution.model_display_name = model
    report.execution.end_time.seconds = 1_790_000_000
    content = sarif.render(document(folder, report, policy_result(*rows)))
    run: dict[str, Any] = json.loads(content)["runs"][0]
    return run


def as_html(text: str) -> str:
    """Markdown as GitHub's flavour makes it: tables, HTML, struck text."""
    parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    return str(parser.render(text))


@settings(deadline=None, max_examples=60)
@given(TEXTS)
def test_markdown_takes_any_text_for_text(text: str) -> None:
    for shown in (markdown.escaped(text), markdown.code(text)):
        for template in (shown, f"| a | {shown} |\n|---|---|\n| b | {shown} |", f"- x {shown}"):
            read = Reader(as_html(template))
            tags = {tag for tag, _ in read.tags}
            assert tags <= {"p", "code", "table", "thead", "tbody", "tr", "th", "td", "ul", "li"}
            assert " ".join(clean(text).split()) in " ".join(read.text.split()) or not text.strip()
        left = re.sub(r"&#\d+;", "", shown)
        assert not any(sign in left for sign in ("@", "#", "://", "www."))


def test_markdown_says_what_the_policy_says(tmp_path: Path) -> None:
    text = markdown.render(document(tmp_path, result=policy_result())).decode()
    read = Reader(as_html(text))
    assert read.text.strip().startswith("❌ FAIL: scorer [v2]")
    said = " ".join(read.text.split())
    assert "Of 6 gates of release: 1 pass, 2 fail, 1 inconclusive, 1 waived, 1 warning." in said
    assert "Blocked by fragile, unknown, forgotten." in said
    assert "waived until 2026-09-21 by Ada: retrained in May" in said
    assert [tag for tag, _ in read.tags].count("details") == 4
    table = text[text.index("### Gates") :].splitlines()[2:10]
    assert {line.count("|") for line in table} == {8}
    assert "| ≥ 0.9 |" in table[3].replace("&#8805;", "≥")


def test_a_large_report_is_a_short_summary(tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path)
    report = image_report(blobs, classes=1000, probes=20, layers=50)
    report.warnings.extend([v1.ReportWarning(code="LONG", message=HOSTILE * 30)] * 150)
    result = policy_result(
        *[gate(f"gate-{i}", v1.VERDICT_FAIL, message=HOSTILE * 20) for i in range(300)]
    )
    content = markdown.render(Document(report, result, None, blobs))
    assert len(content) < 1 << 20
    assert b"too long for a summary" in content
    assert b"### Key figures" in content


def test_sarif_has_a_rule_for_each_gate_and_a_result_for_what_does_not_hold(tmp_path: Path) -> None:
    run = parsed_sarif(folder=tmp_path)
    rules = run["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules] == [row.gate.id for row in policy_result().gates]
    assert all("report.distortion.clean_accuracy" in rule["help"]["text"] for rule in rules)
    results = {result["ruleId"]: result for result in run["results"]}
    assert all(rules[row["ruleIndex"]]["id"] == name for name, row in results.items())
    states = {name: (row["kind"], row["level"]) for name, row in results.items()}
    assert states == {
        "fragile": ("fail", "error"),
        "unknown": ("open", "none"),
        "known-issue": ("fail", "error"),
        "forgotten": ("fail", "error"),
        "nice-to-have": ("fail", "warning"),
    }
    assert [name for name, row in results.items() if "suppressions" in row] == ["known-issue"]
    assert results["known-issue"]["suppressions"][0]["status"] == "accepted"
    assert run["invocations"][0]["endTimeUtc"] == "2026-09-21T14:13:20Z"


def test_fingerprints_stay_while_gate_and_model_do(tmp_path: Path) -> None:
    def prints(model: str, value: float) -> list[str]:
        row = gate("a", v1.VERDICT_FAIL)
        row.figures[0].value.value = value
        run = parsed_sarif(row, gate("b", v1.VERDICT_FAIL), folder=tmp_path, model=model)
        return [result["partialFingerprints"]["onnxAuditGate/v1"] for result in run["results"]]

    first = prints("m", 0.5)
    assert prints("m", 0.25) == first
    assert len({*first, *prints("other", 0.5)}) == 4


def test_sarif_stays_within_github_s_limits(tmp_path: Path) -> None:
    row = gate("a" * 400, v1.VERDICT_FAIL, message=HOSTILE * 100)
    run = parsed_sarif(row, folder=tmp_path, model=HOSTILE * 20)
    (rule,) = run["tool"]["driver"]["rules"]
    assert len(rule["id"]) <= 255
    assert len(rule["fullDescription"]["text"]) <= 1024
    assert len(run["results"][0]["message"]["text"]) <= 1024
    assert len(rule["properties"]["tags"]) <= 20
    uri = run["results"][0]["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
    assert not set(uri) & set('<>"{}|\\^` :/#?')


@pytest.mark.parametrize("hostile", [False, True])
def test_sarif_follows_its_schema(tmp_path: Path, hostile: bool) -> None:
    path = os.environ.get("ONNX_AUDIT_SARIF_SCHEMA", "")
    if not path:
        pytest.skip("name OASIS' sarif-schema-2.1.0.json in ONNX_AUDIT_SARIF_SCHEMA")
    schema = json.loads(Path(path).read_text(encoding="utf-8"))
    report = full_report()
    if hostile:
        report.execution.model_display_name = HOSTILE
    report.execution.start_time.seconds = report.execution.end_time.seconds = 1_790_000_000
    for result in (policy_result(), policy_result(gate(HOSTILE, v1.VERDICT_FAIL)), None):
        log = json.loads(sarif.render(document(tmp_path, report, result)))
        jsonschema.validate(log, schema, cls=jsonschema.Draft7Validator,
                            format_checker=jsonschema.FormatChecker())  # fmt: skip


def test_junit_has_a_case_for_each_gate(tmp_path: Path) -> None:
    root = XmlTree.fromstring(junit.render(document(tmp_path, result=policy_result())))  # noqa: S314 - ours
    (suite,) = root
    assert [(root.get(name), suite.get(name)) for name in ("tests", "failures", "errors")] == [
        ("6", "6"), ("2", "2"), ("1", "1"),
    ]  # fmt: skip
    assert suite.get("skipped") == "2"
    cases = {case.get("name"): [child.tag for child in case] for case in suite.iter("testcase")}
    assert cases == {
        "accuracy": ["system-out"],
        "fragile": ["failure"],
        "unknown": ["error"],
        "known-issue": ["skipped"],
        "forgotten": ["failure"],
        "nice-to-have": ["skipped"],
    }
    failure = next(suite.iter("failure"))
    assert failure.get("message") == "The model is too fragile."
    assert "is 0.75 (0.3 to 0.95), wanted ≥ 0.9, margin -0.15" in (failure.text or "")


@settings(deadline=None, max_examples=60)
@given(TEXTS, TEXTS)
def test_junit_is_xml_whatever_the_names(name: str, message: str) -> None:
    report = v1.Report(execution=v1.Execution(model_display_name=name))
    row = gate("a", v1.VERDICT_FAIL, message=message)
    row.explanation = name
    fake = Document(report, policy_result(row), None, _no_blobs)
    root = XmlTree.fromstring(junit.render(fake))  # noqa: S314 - ours
    assert root.find(".//failure") is not None


class _NoBlobs:
    """A store in which there is nothing."""

    def get(self, digest: str) -> bytes:
        """Finds nothing."""
        raise FileNotFoundError(digest)

    def as_file(self, digest: str) -> Any:
        """Finds nothing."""
        raise FileNotFoundError(digest)


_no_blobs = _NoBlobs()


@pytest.mark.parametrize("form", formats.FORMATS)
def test_every_form_of_an_empty_report_exists(form: v1.ReportFormat.ValueType) -> None:
    document = formats.render(form, v1.Report(), None, None, _no_blobs)
    assert document.content
    assert document.media_type


def test_json_is_the_report(tmp_path: Path) -> None:
    report = full_report()
    content = formats.render(v1.REPORT_FORMAT_JSON, report, None, None, BlobStore(tmp_path))
    assert json_format.Parse(content.content, v1.Report()) == report
    fields = json.loads(content.content)
    again = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert content.content == again.encode()


def test_a_report_that_contradicts_itself_is_refused(tmp_path: Path) -> None:
    report = v1.Report()
    report.transfer.models.extend("abc")
    report.transfer.merges.add(left=0, right=99)
    with pytest.raises(formats.BrokenReportError):
        formats.render(v1.REPORT_FORMAT_HTML, report, None, None, BlobStore(tmp_path))


def test_a_count_of_zero_is_a_figure() -> None:
    """A gate's value and baseline of 0 are shown; what is not there is called missing."""
    there = v1.GateFigure(value=v1.Estimate(), baseline=v1.Estimate(), threshold=5.0)
    for row in (there, missing := v1.GateFigure(threshold=5.0)):
        row.relation = v1.GATE_RELATION_AT_MOST
    gate = v1.GateResult(verdict=v1.VERDICT_PASS, figures=[there, missing])
    (view,) = gates.views(v1.PolicyResult(gates=[gate]))
    shown = [(figure.value, figure.baseline) for figure in view.figures]
    assert shown == [("0", "0"), ("missing", "-")]


def test_an_expired_waiver_never_sets_a_gate_aside() -> None:
    for verdict in (v1.VERDICT_FAIL, v1.VERDICT_INCONCLUSIVE):
        result = policy_result(gate("a", verdict, v1.WAIVER_STATE_EXPIRED))
        assert gates.views(result)[0].outcome is gates.Outcome.FAIL
    held = policy_result(gate("a", v1.VERDICT_PASS, v1.WAIVER_STATE_EXPIRED))
    assert gates.views(held)[0].outcome is gates.Outcome.PASS


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.04236, "0.0424"), (999.6, "1,000"), (2091.0, "2,090"), (-123456.0, "-123,000"),
     (2e6, "2e+06"), (float("inf"), "∞"), (float("nan"), "undefined"), (0.0, "0")],
)  # fmt: skip
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert number(value) == text
