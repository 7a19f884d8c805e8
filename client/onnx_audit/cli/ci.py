"""What build services understand: GitHub's annotations, GitLab's code quality."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from onnx_audit import v1
from onnx_audit.policies import LoadedPolicy

_ANNOTATIONS = {"blocker": "error", "major": "error", "minor": "warning"}


def announce(result: v1.PolicyResult, policy: LoadedPolicy, *, machine_output: bool) -> None:
    """Prints an annotation for each gate that does not hold, where GitHub Actions runs the command.

    Args:
        result: What the policy says.
        policy: The policy, for its lines.
        machine_output: Whether standard output is for something else; GitHub reads both streams.
    """
    if os.environ.get("GITHUB_ACTIONS") != "true":
        return
    for number, row, weight in _troubles(result):
        properties = {"title": f"Gate {row.gate.id}"} | _position(policy, number)
        fields = ",".join(f"{key}={_escape(value, ':,')}" for key, value in properties.items())
        text = _escape(_told(row), "")
        click.echo(f"::{_ANNOTATIONS[weight]} {fields}::{text}", err=machine_output)


def code_quality(result: v1.PolicyResult, policy: LoadedPolicy) -> list[dict[str, Any]]:
    """Gates that do not hold in the form of GitLab's code quality reports."""
    return [
        {
            "check_name": row.gate.id,
            "description": _told(row),
            "severity": weight,
            # The same gate of the same policy is the same trouble from one release to the next.
            "fingerprint": hashlib.sha256(
                f"onnx-audit {result.policy_display_name} {row.gate.id}".encode()
            ).hexdigest(),
            "location": {
                "path": policy.label,
                "lines": {"begin": policy.gate_line(number)},
            },
        }
        for number, row, weight in _troubles(result)
    ]


def _troubles(result: v1.PolicyResult) -> Iterator[tuple[int, v1.GateResult, str]]:
    """Gates that do not hold and are not set aside: their number and how much they weigh."""
    for number, row in enumerate(result.gates):
        if row.verdict == v1.VERDICT_PASS or row.waiver_state == v1.WAIVER_STATE_ACTIVE:
            continue
        weight = "blocker" if row.verdict == v1.VERDICT_FAIL else "major"
        yield number, row, "minor" if row.gate.severity == v1.SEVERITY_WARN else weight


def _told(row: v1.GateResult) -> str:
    what = "does not hold" if row.verdict == v1.VERDICT_FAIL else "could not be decided"
    message = f" {row.gate.message}" if row.gate.message else ""
    return f"Gate {row.gate.id} {what}.{message} ({row.explanation})"


def _position(policy: LoadedPolicy, number: int) -> dict[str, str]:
    if not Path(policy.label).is_file():
        return {}
    return {"file": policy.label, "line": str(policy.gate_line(number))}


def _escape(text: str, more: str) -> str:
    """Text as GitHub's workflow commands take it."""
    for character in f"%\r\n{more}":
        text = text.replace(character, f"%{ord(character):02X}")
    return text
