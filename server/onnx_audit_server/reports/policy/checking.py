"""What makes a policy unusable; found when it is loaded, not when a release hangs on it."""

from __future__ import annotations

import re
from collections.abc import Iterator

from onnx_audit import v1
from onnx_audit_server.reports.policy.atoms import macro_depth
from onnx_audit_server.reports.policy.expression import mistakes

MAX_GATES = 200
MAX_WAIVERS = 1000
MAX_TEXT = 1000
MAX_EXPRESSION = 4000
MAX_DEPTH = 2
"""Most macros over lists inside each other: each multiplies the time by the length of its list."""

Violation = tuple[str, str]
"""Path of a field in the policy, such as "gates[2].expression", and what is wrong with it."""

_ID = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_DIGEST = re.compile(r"[0-9a-f]{64}")


def check(policy: v1.Policy) -> list[Violation]:
    """See `policy.check`."""
    return [*_whole(policy), *_gates(policy), *_waivers(policy)]


def _whole(policy: v1.Policy) -> Iterator[Violation]:
    yield from _text("display_name", policy.display_name, required=False)
    if not policy.gates:
        yield "gates", "there are none; a policy without gates would pass everything"
    for name, rows, most in (
        ("gates", policy.gates, MAX_GATES),
        ("waivers", policy.waivers, MAX_WAIVERS),
    ):
        if len(rows) > most:
            yield name, f"{len(rows)}; allowed are {most}"


def _gates(policy: v1.Policy) -> Iterator[Violation]:
    seen: set[str] = set()
    for number, gate in enumerate(policy.gates[:MAX_GATES]):
        place = f"gates[{number}]"
        if not _ID.fullmatch(gate.id) or len(gate.id) > MAX_TEXT:
            yield f"{place}.id", f"{gate.id!r}; expected lower-case letters, digits and hyphens"
        elif gate.id in seen:
            yield f"{place}.id", f"{gate.id!r} is the id of another gate, too"
        seen.add(gate.id)
        if gate.severity not in v1.Severity.values():
            yield f"{place}.severity", f"there is no severity {gate.severity}"
        yield from _text(f"{place}.message", gate.message, required=False)
        for text in _expression(gate.expression):
            yield f"{place}.expression", text


def _expression(expression: str) -> Iterator[str]:
    if not expression.strip():
        yield "is required: a CEL expression that is true when the gate holds"
    elif len(expression) > MAX_EXPRESSION:
        yield f"is {len(expression)} characters long; allowed are {MAX_EXPRESSION}"
    elif (depth := macro_depth(expression)) > MAX_DEPTH:
        yield f"has {depth} macros over lists inside each other; allowed are {MAX_DEPTH}"
    else:
        for mistake in mistakes(expression):
            yield f"line {mistake.line}, column {mistake.column}: {mistake.text}"


def _waivers(policy: v1.Policy) -> Iterator[Violation]:
    gates = {gate.id for gate in policy.gates}
    for number, waiver in enumerate(policy.waivers[:MAX_WAIVERS]):
        place = f"waivers[{number}]"
        if waiver.gate_id not in gates:
            known = ", ".join(sorted(gates))
            yield f"{place}.gate_id", f"there is no gate {waiver.gate_id!r}; there are: {known}"
        yield from _text(f"{place}.model", waiver.model)
        if re.fullmatch(r"[0-9a-f]{32,}", waiver.model) and not _DIGEST.fullmatch(waiver.model):
            yield f"{place}.model", f"{waiver.model!r} is not a digest of 64 characters"
        yield from _text(f"{place}.reason", waiver.reason)
        yield from _text(f"{place}.owner", waiver.owner)
        if not waiver.HasField("expire_time"):
            yield f"{place}.expire_time", "is required: a waiver is for a while"


def _text(field: str, text: str, *, required: bool = True) -> Iterator[Violation]:
    if required and not text.strip():
        yield field, "is required"
    if len(text) > MAX_TEXT:
        yield field, f"is {len(text)} characters long; allowed are {MAX_TEXT}"
