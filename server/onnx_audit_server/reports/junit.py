"""A policy's result as JUnit XML: a case for each gate."""

from __future__ import annotations

from typing import Final
from xml.etree import ElementTree as XmlTree

from onnx_audit_server.reports import gates
from onnx_audit_server.reports.document import Document
from onnx_audit_server.reports.gates import GateView, Outcome
from onnx_audit_server.reports.words import clean

_ELEMENTS: Final = {
    Outcome.FAIL: "failure",
    Outcome.INCONCLUSIVE: "error",
    Outcome.WAIVED: "skipped",
    Outcome.WARNING: "skipped",
}


def render(document: Document) -> bytes:
    """The gates as test cases, XML 1.0 in UTF-8; without a policy a suite without cases.

    A gate that fails is a failure, one that could not be decided an error; one that is waived, or
    that warns only, is skipped with the reason.
    """
    views = gates.views(document.result)
    outcomes = [view.outcome for view in views]
    counts = {
        "tests": str(len(views)),
        "failures": str(outcomes.count(Outcome.FAIL)),
        "errors": str(outcomes.count(Outcome.INCONCLUSIVE)),
        "skipped": str(sum(_ELEMENTS.get(outcome) == "skipped" for outcome in outcomes)),
    }
    report = document.report
    root = XmlTree.Element("testsuites", {"name": "onnx-audit", **counts})
    suite = XmlTree.SubElement(root, "testsuite", {"name": clean(document.model_name), **counts})
    if report.execution.end_time.seconds:
        ended = report.execution.end_time.ToDatetime()
        suite.set("timestamp", f"{ended:%Y-%m-%dT%H:%M:%S}")
    properties = XmlTree.SubElement(suite, "properties")
    for name, value in (
        ("report", report.digest),
        ("model", report.model.sha256),
        ("probes", report.probes.sha256),
    ):
        XmlTree.SubElement(properties, "property", {"name": name, "value": clean(value)})
    for view in views:
        _case(suite, view, document.model_name)
    XmlTree.indent(root)
    return bytes(XmlTree.tostring(root, encoding="utf-8", xml_declaration=True)) + b"\n"


def _case(suite: XmlTree.Element, view: GateView, model: str) -> None:
    case = XmlTree.SubElement(
        suite,
        "testcase",
        {"classname": clean(f"onnx-audit.{model}"), "name": clean(view.identifier), "time": "0"},
    )
    text = _figures(view)
    if (kind := _ELEMENTS.get(view.outcome)) is None:
        XmlTree.SubElement(case, "system-out").text = text
        return
    message = {
        Outcome.WAIVED: view.waiver,
        Outcome.WARNING: f"warns only: {view.message or view.explanation}",
    }.get(view.outcome, view.message or view.explanation)
    found = XmlTree.SubElement(case, kind, {"message": clean(message)})
    if kind != "skipped":
        found.set("type", view.outcome.value)
    found.text = text


def _figures(view: GateView) -> str:
    lines = [view.explanation, f"expression: {view.expression}", view.waiver]
    lines += [
        f"{figure.name} is {figure.value}, wanted {figure.threshold}, margin {figure.margin}, "
        f"baseline {figure.baseline}"
        for figure in view.figures
    ]
    return clean("\n".join(line for line in lines if line))
