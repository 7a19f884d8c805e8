"""Takes an expression apart into its comparisons, so that each can be shown with its figures.

What an expression means is CEL's alone to say; this is for people who want to know why.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from onnx_audit import v1

_TOKEN = re.compile(
    r"""
      (?P<space> \s+ | //[^\n]* )
    | (?P<text> (?: [rR][bB]? | [bB][rR] )                # raw: a backslash is itself
                (?: \"{3}.*?\"{3} | '{3}.*?'{3} | "[^"\n]*" | '[^'\n]*' )
              | [bB]?
                (?: \"{3}(?:\\.|.)*?\"{3} | '{3}(?:\\.|.)*?'{3}
                  | "(?:\\.|[^"\\\n])*" | '(?:\\.|[^'\\\n])*' ) )
    | (?P<number> (?: 0x[0-9a-fA-F]+ | \d+\.\d+ | \.\d+ | \d+ ) (?: [eE][+-]?\d+ )? u? )
    | (?P<name> [A-Za-z_]\w* )
    | (?P<sign> && | \|\| | [=!<>]= | . )
    """,
    re.VERBOSE | re.DOTALL,
)
_MACROS = frozenset({"all", "exists", "exists_one", "map", "filter"})
_ALL = [".", "all", "("]
_RELATIONS = {
    ">=": v1.GATE_RELATION_AT_LEAST,
    ">": v1.GATE_RELATION_ABOVE,
    "<=": v1.GATE_RELATION_AT_MOST,
    "<": v1.GATE_RELATION_BELOW,
    "==": v1.GATE_RELATION_EQUAL,
    "!=": v1.GATE_RELATION_NOT_EQUAL,
}
_SURE = {"at_least": v1.GATE_RELATION_AT_LEAST, "at_most": v1.GATE_RELATION_AT_MOST}
_NEGATED = {
    v1.GATE_RELATION_AT_LEAST: v1.GATE_RELATION_BELOW,
    v1.GATE_RELATION_ABOVE: v1.GATE_RELATION_AT_MOST,
    v1.GATE_RELATION_AT_MOST: v1.GATE_RELATION_ABOVE,
    v1.GATE_RELATION_BELOW: v1.GATE_RELATION_AT_LEAST,
    v1.GATE_RELATION_EQUAL: v1.GATE_RELATION_NOT_EQUAL,
    v1.GATE_RELATION_NOT_EQUAL: v1.GATE_RELATION_EQUAL,
}
_MIRRORED = {
    v1.GATE_RELATION_AT_LEAST: v1.GATE_RELATION_AT_MOST,
    v1.GATE_RELATION_ABOVE: v1.GATE_RELATION_BELOW,
    v1.GATE_RELATION_AT_MOST: v1.GATE_RELATION_AT_LEAST,
    v1.GATE_RELATION_BELOW: v1.GATE_RELATION_ABOVE,
}


@dataclass(frozen=True)
class Atom:
    """A part of an expression that is true or false.

    Attributes:
        text: The part as CEL, with its negation.
        figure: The side of a comparison that names a figure; the whole where none is compared.
        threshold: The other side; empty where none is compared.
        relation: How the figure has to stand to the threshold.
        sure: Whether the whole interval has to.
    """

    text: str
    figure: str
    threshold: str = ""
    relation: v1.GateRelation.ValueType = v1.GATE_RELATION_UNSPECIFIED
    sure: bool = False


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    begin: int
    end: int
    depth: int


def atoms(expression: str) -> list[Atom]:
    """The comparisons of an expression in its order, and its other parts that are true or false."""
    return list(_split(expression, negated=False))


def rename(expression: str, old: str, new: str) -> str:
    """An expression with another variable in the place of one; fields and texts stay."""
    found = []
    before = ""
    for token in _tokens(expression):
        same = token.kind == "name" and token.text == old and before != "."
        found.append(new if same else token.text)
        before = before if token.kind == "space" else token.text
    return "".join(found)


def mentions(expression: str, name: str) -> bool:
    """Whether a variable occurs in an expression."""
    return rename(expression, name, f"{name}_") != expression


def fields(expression: str) -> frozenset[str]:
    """The names in an expression: of fields, variables, functions and macros."""
    return frozenset(token.text for token in _tokens(expression) if token.kind == "name")


def all_over(expression: str) -> tuple[str, str, str] | None:
    """List, variable and condition of `list.all(variable, condition)`, if that is all there is."""
    tokens = [token for token in _tokens(expression) if token.kind != "space"]
    names = [token.text for token in tokens]
    places = (n for n in range(2, len(tokens)) if names[n - 2 : n + 1] == _ALL)
    opening = next((n for n in places if tokens[n].depth == 0), None)
    if opening is None or names[0] == "!":
        return None
    if any(token.depth == 0 for token in tokens[opening + 1 : -1]):
        return None
    variable, comma = tokens[opening + 1 : opening + 3]
    listed = expression[: tokens[opening - 2].begin].strip()
    return listed, variable.text, expression[comma.end : tokens[-1].begin].strip()


def macro_depth(expression: str) -> int:
    """How many macros over lists lie inside each other at most."""
    opened: list[bool] = []
    deepest = 0
    before = ("", "")
    for token in _tokens(expression):
        if token.kind == "space":
            continue
        if token.text == "(":
            opened.append(before[0] == "." and before[1] in _MACROS)
            deepest = max(deepest, sum(opened))
        elif token.text == ")" and opened:
            opened.pop()
        before = (before[1], token.text)
    return deepest


def _tokens(text: str) -> list[_Token]:
    found = []
    depth = 0
    for match in _TOKEN.finditer(text):
        kind = match.lastgroup or ""
        sign = match.group() if kind == "sign" else ""
        depth -= sign in {")", "]", "}"}
        found.append(_Token(kind, match.group(), *match.span(), depth))
        depth += sign in {"(", "[", "{"}
    return found


def _split(text: str, *, negated: bool) -> Iterator[Atom]:
    text = text.strip()
    tokens = [token for token in _tokens(text) if token.kind != "space"]
    top = [token for token in tokens if token.kind == "sign" and token.depth == 0]
    if any(token.text == "?" for token in top):
        yield _whole(text, negated=negated)
        return
    for operator in ("||", "&&"):
        places = [token for token in top if token.text == operator]
        if places:
            begins = [0, *(token.end for token in places)]
            ends = [*(token.begin for token in places), len(text)]
            for begin, end in zip(begins, ends, strict=True):
                yield from _split(text[begin:end], negated=negated)
            return
    compared = [token for token in top if token.text in _RELATIONS]
    if len(compared) == 1:
        token = compared[0]
        yield _comparison(text[: token.begin], token.text, text[token.end :], negated=negated)
    elif not compared and top and top[0].text == "!" and tokens[0] == top[0]:
        yield from _split(text[1:], negated=not negated)
    elif not compared and _is_call(tokens, ""):
        yield from _split(text[1:-1], negated=negated)
    elif not compared and tokens and tokens[0].text in _SURE and _is_call(tokens, tokens[0].text):
        yield _sure(text, tokens, negated=negated)
    else:
        yield _whole(text, negated=negated)


def _is_call(tokens: list[_Token], name: str) -> bool:
    """Whether all of it is one pair of brackets behind a name; behind nothing if that is empty."""
    inner = tokens[1:] if name else tokens
    if not inner or (inner[0].text, inner[-1].text) != ("(", ")"):
        return False
    return all(token.depth > 0 for token in inner[1:-1])


def _whole(text: str, *, negated: bool) -> Atom:
    text = f"!({text})" if negated else text
    return Atom(text, text)


def _comparison(left: str, sign: str, right: str, *, negated: bool) -> Atom:
    left, right, relation = left.strip(), right.strip(), _RELATIONS[sign]
    text = f"!({left} {sign} {right})" if negated else f"{left} {sign} {right}"
    if negated:
        relation = _NEGATED[relation]
    if re.fullmatch(r"-?[\d.eE+-]+", left):
        left, right, relation = right, left, _MIRRORED.get(relation, relation)
    return Atom(text, left, right, relation)


def _sure(text: str, tokens: list[_Token], *, negated: bool) -> Atom:
    comma = next(token for token in tokens if token.text == "," and token.depth == 1)
    opening = tokens[1]
    figure, threshold = text[opening.end : comma.begin].strip(), text[comma.end : -1].strip()
    relation = _SURE[tokens[0].text]
    return Atom(
        f"!{text}" if negated else text,
        figure,
        threshold,
        _NEGATED[relation] if negated else relation,
        sure=True,
    )
