"""A policy's result as SARIF 2.1.0, for code scanning (OASIS standard, 27 March 2020)."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Final
from urllib.parse import quote

from onnx_audit import v1
from onnx_audit.version import __version__
from onnx_audit_server.reports import gates
from onnx_audit_server.reports.document import Document
from onnx_audit_server.reports.gates import GateView, Outcome
from onnx_audit_server.reports.words import cut, verdict_name

_SCHEMA: Final = (
    "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
)
# What GitHub's code scanning takes: rules and results in a run, characters in texts and names.
_MOST_RESULTS: Final = 25_000
_MOST_TEXT: Final = 1_000
_MOST_NAME: Final = 255
# "open": there was too little to decide; only what fails has a level (sections 3.27.9, 3.27.10).
_KINDS: Final = {Outcome.INCONCLUSIVE: "open"}


def render(document: Document) -> bytes:
    """Rules for all gates, and results for those that do not hold, as JSON in UTF-8.

    A gate that holds is a rule without a result. One that is waived is a suppressed result.
    """
    views = gates.views(document.result)[:_MOST_RESULTS]
    run: dict[str, Any] = {
        "tool": {
            "driver": {
                "name": "onnx-audit",
                "version": __version__,
                "semanticVersion": __version__,
                "rules": [_rule(view) for view in views],
            }
        },
        "automationDetails": {"id": f"onnx-audit/{_uri(document)}/"},
        "artifacts": [
            {
                "location": {"uri": _uri(document)},
                "hashes": {"sha-256": document.report.model.sha256},
                "roles": ["analysisTarget"],
            }
        ],
        "invocations": [_invocation(document)],
        "results": [
            _result(view, place, document)
            for place, view in enumerate(views)
            if view.outcome is not Outcome.PASS
        ],
        "columnKind": "unicodeCodePoints",
        "properties": {
            "reportDigest": document.report.digest,
            "verdict": verdict_name(document.result.verdict) if document.result else "",
        },
    }
    log = {"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}
    return json.dumps(log, ensure_ascii=False, indent=2, sort_keys=True).encode()


def _rule(view: GateView) -> dict[str, Any]:
    message = view.message or f"The gate {view.identifier} has to hold."
    severity = "This gate warns only." if view.warns_only else "This gate blocks the release."
    help_text = (
        f"{message}\n\n{severity} It holds where this expression over the report is true:\n\n"
        f"{view.expression}"
    )
    return {
        "id": cut(view.identifier, _MOST_NAME),
        "name": cut(view.identifier, _MOST_NAME),
        "shortDescription": {"text": cut(message, _MOST_TEXT)},
        "fullDescription": {"text": cut(message, _MOST_TEXT)},
        "help": {"text": cut(help_text, _MOST_TEXT)},
        "defaultConfiguration": {"level": _level(view)},
        "properties": {
            "tags": ["onnx", "robustness"],
            "problem.severity": _level(view),
            "precision": "high",
        },
    }


def _level(view: GateView) -> str:
    return "warning" if view.warns_only else "error"


def _result(view: GateView, place: int, document: Document) -> dict[str, Any]:
    kind = _KINDS.get(_decided(view), "fail")
    fingerprint = _fingerprint(view, document)
    result: dict[str, Any] = {
        "ruleId": cut(view.identifier, _MOST_NAME),
        "ruleIndex": place,
        "kind": kind,
        "level": _level(view) if kind == "fail" else "none",
        "message": {"text": cut(_message(view), _MOST_TEXT)},
        "locations": [
            {
                "physicalLocation": {
                    "artifactLocation": {"uri": _uri(document), "index": 0},
                    "region": {"startLine": 1},
                }
            }
        ],
        # A gate of a model is the same finding in every release, whatever its figures.
        "partialFingerprints": {
            "onnxAuditGate/v1": fingerprint,
            "primaryLocationLineHash": f"{fingerprint[:16]}:1",
        },
    }
    if view.outcome is Outcome.WAIVED:
        result["suppressions"] = [
            {
                "kind": "external",
                "status": "accepted",
                "justification": cut(view.waiver, _MOST_TEXT),
            }
        ]
    return result


def _decided(view: GateView) -> Outcome:
    """What a gate says before waiver and severity; an expired waiver makes it fail."""
    undecided = view.verdict == verdict_name(v1.VERDICT_INCONCLUSIVE)
    return Outcome.INCONCLUSIVE if undecided and view.outcome is not Outcome.FAIL else Outcome.FAIL


def _message(view: GateView) -> str:
    figures = [
        f"{figure.name} is {figure.value}, wanted {figure.threshold}"
        + (f", baseline {figure.baseline}" if figure.baseline != "-" else "")
        for figure in view.figures
    ]
    said = ". ".join(text.rstrip(".") for text in (view.message, view.explanation) if text)
    return f"{said or view.identifier}. {'; '.join(figures)}".strip()


def _fingerprint(view: GateView, document: Document) -> str:
    subject = json.dumps([_uri(document), view.identifier])
    return hashlib.sha256(subject.encode()).hexdigest()


def _uri(document: Document) -> str:
    """The model's name as a relative URI; every character that may mean something is encoded."""
    return quote(cut(document.model_name, _MOST_NAME), safe="")


def _invocation(document: Document) -> dict[str, Any]:
    report = document.report
    invocation: dict[str, Any] = {
        "executionSuccessful": True,
        "toolExecutionNotifications": [
            {
                "level": "warning",
                "message": {"text": cut(warning.message, _MOST_TEXT)},
                "descriptor": {"id": cut(warning.code, _MOST_NAME) or "WARNING"},
            }
            for warning in report.warnings
        ],
    }
    for name, time in (
        ("startTimeUtc", report.execution.start_time),
        ("endTimeUtc", report.execution.end_time),
    ):
        if time.seconds:
            invocation[name] = f"{time.ToDatetime():%Y-%m-%dT%H:%M:%SZ}"
    return invocation
