"""The functions that expressions may use besides CEL's own, and the names of the norms.

Each is declared twice: with the messages' types, so that a mistake shows when a policy is loaded,
and over dicts, on which expressions are evaluated. A function that cannot answer raises
`Undecided`, whose text tells people why.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cel_expr_python import cel  # type: ignore[import-untyped]

from onnx_audit import v1
from onnx_audit_server.reports.policy.values import Plain

NORMS = {"L0": v1.NORM_L0, "L1": v1.NORM_L1, "L2": v1.NORM_L2, "LINF": v1.NORM_LINF}
"""Variables of every expression, for the norms."""


class Undecided(Exception):  # noqa: N818 - an answer that cannot be given is not an error
    """There is no answer; the text says why."""


def at_least(estimate: Plain, threshold: float) -> bool:
    """Whether the figure is `threshold` or more with its whole interval."""
    lower, upper = _interval(estimate)
    if lower >= threshold:
        return True
    if upper < threshold:
        return False
    raise _straddles(lower, upper, threshold)


def at_most(estimate: Plain, threshold: float) -> bool:
    """Whether the figure is `threshold` or less with its whole interval."""
    lower, upper = _interval(estimate)
    if upper <= threshold:
        return True
    if lower > threshold:
        return False
    raise _straddles(lower, upper, threshold)


def norm(section: Plain, wanted: int) -> Plain:
    """The entry of a norm in the section of `distortion`."""
    return _entry(section, "norms", lambda row: row["norm"] == wanted, _norm_name(wanted))


def bound(section: Plain, wanted: int) -> Plain:
    """The network's bounds in a norm, from the section of `lipschitz`."""
    return _entry(
        section, "network", lambda row: row["bound"]["norm"] == wanted, _norm_name(wanted)
    )


def certificates(section: Plain, wanted: int) -> Plain:
    """The certificates in a norm, from the section of `lipschitz`."""
    return _entry(section, "certificates", lambda row: row["norm"] == wanted, _norm_name(wanted))


def layer(section: Plain, name: str) -> Plain:
    """The layer of a name, from the section of `lipschitz` or of `units`."""
    return _entry(
        section, "layers", lambda row: name in {row.get("name"), row.get("value")}, repr(name)
    )


def quantile(figures: Plain, probability: float) -> Plain:
    """A quantile of the distances of a norm, or of the radii of certificates."""
    found = _entry(
        figures,
        "quantiles",
        lambda row: math.isclose(row["probability"], probability),
        f"{probability:g}",
    )
    return _estimate(found, "estimate")


def accuracy_at(figures: Plain, radius: float) -> Plain:
    """Accuracy under changes of a size: robust accuracy of a norm, certified of certificates.

    Curves fall and have points at some radii alone; between two points the farther one counts,
    which is never more than the accuracy at the radius itself.
    """
    name = "robust_accuracy" if "robust_accuracy" in figures else "certified_accuracy"
    points = [row for row in figures.get(name, []) if row["x"] >= radius]
    if not points:
        ends = max((row["x"] for row in figures.get(name, [])), default=math.nan)
        raise Undecided(f"the curve {name} ends at {ends:g}, before {radius:g}")
    return _estimate(min(points, key=lambda row: float(row["x"])), "y")


def not_worse(changes: Plain, pattern: str) -> bool:
    """Whether no figure whose path matches the pattern is worse than that of the baseline.

    A difference that the choice of probes explains does not count as worse.
    """
    found = matching(changes, pattern)
    movements = {row["movement"] for row in found.values()}
    if v1.MOVEMENT_WORSE in movements:
        return False
    if not found:
        raise Undecided(f"no figure of both reports matches {pattern!r}")
    unclear = [name for name, row in found.items() if row["movement"] == v1.MOVEMENT_UNSPECIFIED]
    if unclear:
        raise Undecided(f"nothing is known of what chance does to {unclear[0]}")
    return True


def matching(changes: Plain, pattern: str) -> dict[str, Plain]:
    """The changes whose paths match a pattern with "*" for any text."""
    expression = ".*".join(re.escape(part) for part in pattern.split("*"))
    return {path: row for path, row in changes.items() if re.fullmatch(expression, path, re.DOTALL)}


@dataclass(frozen=True)
class _Signature:
    function: Callable[..., Any]
    returns: str
    parameters: tuple[str, ...]


_SIGNATURES = (
    _Signature(at_least, "bool", ("Estimate", "double")),
    _Signature(at_most, "bool", ("Estimate", "double")),
    _Signature(norm, "NormDistortion", ("DistortionSection", "int")),
    _Signature(bound, "LipschitzNetwork", ("LipschitzSection", "int")),
    _Signature(certificates, "LipschitzCertificates", ("LipschitzSection", "int")),
    _Signature(layer, "LipschitzLayer", ("LipschitzSection", "string")),
    _Signature(layer, "UnitsLayer", ("UnitsSection", "string")),
    _Signature(quantile, "Estimate", ("NormDistortion", "double")),
    _Signature(quantile, "Estimate", ("LipschitzCertificates", "double")),
    _Signature(accuracy_at, "Estimate", ("NormDistortion", "double")),
    _Signature(accuracy_at, "Estimate", ("LipschitzCertificates", "double")),
    _Signature(not_worse, "bool", ("changes", "string")),
)
CHANGES = cel.Type.Map(cel.Type.STRING, cel.Type("onnx_audit.v1.Comparison"))
"""Type of the variable `changes`: what moved from the baseline, by path."""
_SCALARS = {
    "bool": cel.Type.BOOL,
    "double": cel.Type.DOUBLE,
    "int": cel.Type.INT,
    "string": cel.Type.STRING,
}


def typed() -> list[cel.FunctionDecl]:
    """The functions over messages, to check expressions with."""
    declared: dict[str, list[cel.Overload]] = {}
    for number, signature in enumerate(_SIGNATURES):
        overload = cel.Overload(
            f"typed_{number}",
            _type(signature.returns, _message),
            [_type(name, _message) for name in signature.parameters],
            impl=signature.function,
        )
        declared.setdefault(signature.function.__name__, []).append(overload)
    return _declarations(declared)


def untyped() -> list[cel.FunctionDecl]:
    """The functions over dicts, to evaluate expressions with."""
    declared: dict[str, list[cel.Overload]] = {}
    for signature in _SIGNATURES:
        name = signature.function.__name__
        if name not in declared:
            overload = cel.Overload(
                f"untyped_{name}",
                _type(signature.returns, lambda _: cel.Type.MAP),
                [_type(kind, lambda _: cel.Type.MAP) for kind in signature.parameters],
                impl=signature.function,
            )
            declared[name] = [overload]
    return _declarations(declared)


def _declarations(declared: dict[str, list[cel.Overload]]) -> list[cel.FunctionDecl]:
    return [cel.FunctionDecl(name, overloads) for name, overloads in declared.items()]


def _type(name: str, message: Callable[[str], cel.Type]) -> cel.Type:
    return _SCALARS[name] if name in _SCALARS else message(name)


def _message(name: str) -> cel.Type:
    return CHANGES if name == "changes" else cel.Type(f"onnx_audit.v1.{name}")


def _entry(section: Plain, field: str, wanted: Callable[[Plain], bool], name: str) -> Plain:
    entries: Sequence[Plain] = section.get(field, [])
    found = next((row for row in entries if wanted(row)), None)
    if found is None:
        raise Undecided(f"the report has no entry of {name} in {field}")
    return found


def _estimate(row: Plain, field: str) -> Plain:
    found: Plain = row[field]
    return found


def _interval(estimate: Plain) -> tuple[float, float]:
    interval = estimate.get("interval", {})
    if "lower" not in interval or "upper" not in interval:
        raise Undecided("the figure has no interval; a gate may look at its value instead")
    return interval["lower"], interval["upper"]


def _straddles(lower: float, upper: float, threshold: float) -> Undecided:
    return Undecided(
        f"the interval from {lower:.4g} to {upper:.4g} holds the threshold {threshold:.4g}"
    )


def _norm_name(norm: int) -> str:
    return next((name for name, number in NORMS.items() if number == norm), f"norm {norm}")
