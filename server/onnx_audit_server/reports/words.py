"""Figures and names of the schema as text for people."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

from onnx_audit import v1

_UNFIT = re.compile("[^\t\n\r -~\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_SHORTEST = 4
_THOUSAND, _MILLION = 1e3, 1e6


def clean(text: str) -> str:
    """Text without characters that XML 1.0 forbids, and without controls (section 2.2, Char)."""
    return _UNFIT.sub("\N{REPLACEMENT CHARACTER}", text)


def short(text: str, most: int) -> str:
    """Text of at most so many characters; the middle of a longer one is left out."""
    text = " ".join(clean(text).split())
    if len(text) <= most:
        return text
    head = max((most - 1) // 2, _SHORTEST // 2)
    return f"{text[:head]}…{text[head + 1 - most :]}"


def apart(names: Sequence[str], most: int) -> list[str]:
    """Names of at most so many characters each, without what they all begin and end with.

    Names that are short as they are stay whole.
    """
    names = [" ".join(clean(name).split()) for name in names]
    if len(names) > 1 and max(map(len, names)) > most:
        head = _shared(names)
        rest = [name[head:] for name in names]
        tail = _shared([name[::-1] for name in rest])
        if head + tail >= _SHORTEST and all(len(name) > tail for name in rest):
            before, after = "…" if head else "", "…" if tail else ""
            names = [f"{before}{name[: len(name) - tail]}{after}" for name in rest]
    return [short(name, most) for name in names]


def _shared(names: Sequence[str]) -> int:
    """Number of characters that all names begin with."""
    pairs = enumerate(zip(*names, strict=False))
    differing = (place for place, signs in pairs if len(set(signs)) > 1)
    return next(differing, min(map(len, names)))


def cut(text: str, most: int) -> str:
    """Text of at most so many characters; the end of a longer one is left out."""
    text = clean(text)
    return text if len(text) <= most else f"{text[: most - 1]}…"


def number(value: float) -> str:
    """A number with three significant digits, thousands written out."""
    if math.isnan(value):
        return "undefined"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    rounded = float(f"{value:.3g}")
    return f"{rounded:,.0f}" if _THOUSAND <= abs(rounded) < _MILLION else f"{value:.3g}"


def percent(share: float) -> str:
    """A share in per cent, such as "98.2 %"."""
    return f"{100 * share:.3g} %" if math.isfinite(share) else number(share)


def given(estimate: v1.Estimate) -> bool:
    """Whether an estimate was set at all: one that was not must not be taken for a zero."""
    return bool(estimate.ByteSize())


def interval(estimate: v1.Estimate, *, share: bool = False) -> str:
    """An estimate's interval, such as "0.79 to 0.861"; empty where there is none."""
    if not estimate.HasField("interval"):
        return ""
    ends = estimate.interval.lower, estimate.interval.upper
    if all(math.isinf(end) for end in ends):
        return "too few for an interval"
    if share:
        return f"{100 * ends[0]:.3g} to {100 * ends[1]:.3g} %"
    return f"{number(ends[0])} to {number(ends[1])}"


def figure(estimate: v1.Estimate, *, share: bool = False) -> str:
    """An estimate with its interval, such as "0.823 (0.79 to 0.861)"; "-" if it was not set."""
    if not given(estimate):
        return "-"
    text = percent(estimate.value) if share else number(estimate.value)
    ends = interval(estimate, share=share)
    return f"{text} ({ends})" if ends else text


def count(amount: int, one: str, many: str = "") -> str:
    """A number of things, such as "1 probe" or "2,000 probes"."""
    return f"{amount:,} {one if amount == 1 else many or one + 's'}"


def norm_name(norm: v1.Norm.ValueType) -> str:
    """A norm's name as people write it, such as "L2" or "Linf"."""
    return {"LINF": "Linf"}.get(name := v1.Norm.Name(norm).removeprefix("NORM_"), name)


def attack_name(attack: v1.TransferAttack.ValueType) -> str:
    """What people call an attack, such as "minimal targeted"."""
    name = v1.TransferAttack.Name(attack).removeprefix("TRANSFER_ATTACK_")
    return name.lower().replace("_", " ")


def score_name(kind: v1.UnitScoreKind.ValueType) -> str:
    """A score's name, such as "label"."""
    return v1.UnitScoreKind.Name(kind).removeprefix("UNIT_SCORE_KIND_").lower().replace("_", " ")


def verdict_name(verdict: v1.Verdict.ValueType) -> str:
    """A verdict, such as "PASS"."""
    return v1.Verdict.Name(verdict).removeprefix("VERDICT_")


def shape_text(shape: Iterable[int]) -> str:
    """A shape, such as "N x 3 x 32 x 32"; open axes are N."""
    return " x ".join("N" if size < 0 else str(size) for size in shape) or "a single number"


def bytes_text(size: int) -> str:
    """A length in bytes for people, such as "3.2 MB"."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size} bytes"
