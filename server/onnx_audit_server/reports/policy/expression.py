"""CEL expressions over reports: checked with types, evaluated on what is there."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import Any

from cel_expr_python import cel  # type: ignore[import-untyped]
from google.protobuf import descriptor_pool

from onnx_audit import v1
from onnx_audit_server.reports.policy import functions

CONTAINER = "onnx_audit.v1"
_ERROR = re.compile(r"ERROR: <input>:(\d+):(\d+): (.*?)(?: \[INVALID_ARGUMENT\])?$", re.MULTILINE)
_MISSING_KEY = re.compile(r'Key not found in map : "(.*)"')
_MISSING_VARIABLE = re.compile(r'No value with name "(\w+)" found')


@dataclass(frozen=True)
class Mistake:
    """What is wrong with an expression, and where: line and column count from 1."""

    line: int
    column: int
    text: str


@dataclass(frozen=True)
class Answer:
    """What an expression gives.

    Attributes:
        value: A bool, number, text, list or dict; None where there is no answer.
        reason: Why there is none.
    """

    value: Any = None
    reason: str = ""


class Data:
    """The variables of expressions.

    Args:
        values: By name. `report` always; `baseline` and `changes` where there is a baseline.

    Attributes:
        has_baseline: Whether there is a baseline.
        changes: What moved from it, by path; empty where no expression asks for it.
    """

    def __init__(self, values: dict[str, Any]) -> None:
        self.has_baseline = "baseline" in values
        self.changes: dict[str, Any] = values.get("changes", {})
        self._activation = _untyped().Activation(data=functions.NORMS | values)

    def evaluate(self, expression: str) -> Answer:
        """Evaluates an expression that `mistakes` has found nothing in, or a part of one."""
        try:
            result = _untyped().compile(expression).eval(self._activation)
        except (RuntimeError, ValueError) as error:
            return Answer(reason=_reason(str(error)))
        if result.type() == cel.Type.ERROR:
            return Answer(reason=_reason(str(result.value())))
        return Answer(value=result.plain_value())


def mistakes(expression: str) -> list[Mistake]:
    """What is wrong with an expression that has to be true or false; nothing if it is right."""
    try:
        compiled = _typed().compile(expression)
    except (RuntimeError, ValueError) as error:
        found = [Mistake(int(a), int(b), text) for a, b, text in _ERROR.findall(str(error))]
        return found or [Mistake(1, 1, str(error))]
    kind = compiled.return_type()
    if kind != cel.Type.BOOL:
        return [Mistake(1, 1, f"gives {kind.name()}; expected true or false")]
    return []


@functools.cache
def _typed() -> cel.Env:
    v1.Report()  # its descriptors are loaded when it is first asked for
    report = cel.Type(f"{CONTAINER}.Report")
    return cel.NewEnv(
        descriptor_pool.Default(),
        variables={"report": report, "baseline": report, "changes": functions.CHANGES, **_norms()},
        container=CONTAINER,
        functions=functions.typed(),
    )


@functools.cache
def _untyped() -> cel.Env:
    names = ("report", "baseline", "changes")
    return cel.NewEnv(
        descriptor_pool.Default(),
        variables={**dict.fromkeys(names, cel.Type.DYN), **_norms()},
        container=CONTAINER,
        functions=functions.untyped(),
    )


def _norms() -> dict[str, cel.Type]:
    return dict.fromkeys(functions.NORMS, cel.Type.INT)


def _reason(error: str) -> str:
    """CEL's error in words that say what is missing."""
    if match := _MISSING_KEY.search(error):
        return f"{match.group(1)} is missing"
    if match := _MISSING_VARIABLE.search(error):
        return f"there is no baseline ({match.group(1)})"
    return re.sub(r"^[A-Z_]+: ", "", error).partition("\n")[0]
