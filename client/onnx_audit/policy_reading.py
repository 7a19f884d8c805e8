"""Reads a policy out of YAML's nodes, which know their lines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Final

import yaml
from google.protobuf.timestamp_pb2 import Timestamp

from onnx_audit import v1
from onnx_audit.errors import ConfigError
from onnx_audit.requests import unknown_name

_SEVERITIES: Final = {"block": v1.SEVERITY_BLOCK, "warn": v1.SEVERITY_WARN}
_KINDS: Final = {
    "bool": "true or false",
    "float": "a number",
    "int": "a number",
    "map": "fields",
    "null": "nothing",
    "seq": "a list",
    "timestamp": "a date",
}


@dataclass(frozen=True)
class Place:
    """Where something is in a YAML text; lines and columns count from 1.

    Attributes:
        line: Its line.
        column: Its column.
        rows: Of a text: line, column and length of each of its parts.
        folded: Whether the parts are one line of the text, with spaces between them.
    """

    line: int = 1
    column: int = 1
    rows: tuple[tuple[int, int, int], ...] = ()
    folded: bool = False

    def inside(self, line: int, column: int) -> tuple[int, int]:
        """Line and column in the YAML of a line and column of the text."""
        if self.folded:
            for start, begin, length in self.rows:
                if column <= length + 1:
                    return start, begin + column - 1
                column -= length + 1
        elif line <= len(self.rows):
            start, begin, _ = self.rows[line - 1]
            return start, begin + column - 1
        return self.line, self.column


def read_policy(root: yaml.Node | None, text: str) -> tuple[v1.Policy, dict[str, Place], list[str]]:
    """A policy from the root of a YAML document.

    Args:
        root: The root, None for an empty document.
        text: The document.

    Returns:
        The policy as far as it could be read; where its fields are, by path; and what is wrong with
        it, as "line:column: what".
    """
    reader = _Reader(text)
    policy = v1.Policy()
    if root is None:
        reader.mistakes.append("1:1: the file is empty; expected display_name, gates, waivers")
    else:
        reader.policy(root, policy)
    return policy, reader.places, reader.mistakes


class _Reader:
    def __init__(self, text: str) -> None:
        self._lines = text.splitlines()
        self.places: dict[str, Place] = {"": Place()}
        self.mistakes: list[str] = []

    def policy(self, node: yaml.Node, policy: v1.Policy) -> None:
        fields = self._fields(node, "", ("display_name", "gates", "waivers"), ("gates",))
        policy.display_name = self._text(fields, "", "display_name")
        for path, item in self._items(fields, "gates"):
            self._gate(item, path, policy.gates.add())
        for path, item in self._items(fields, "waivers"):
            self._waiver(item, path, policy.waivers.add())

    def _gate(self, node: yaml.Node, path: str, gate: v1.Gate) -> None:
        known = ("id", "severity", "expression", "message")
        fields = self._fields(node, path, known, ("id", "expression"))
        gate.id = self._text(fields, path, "id")
        gate.expression = self._text(fields, path, "expression")
        gate.message = self._text(fields, path, "message")
        gate.severity = v1.SEVERITY_BLOCK
        if "severity" in fields:
            name = self._text(fields, path, "severity")
            if name in _SEVERITIES:
                gate.severity = _SEVERITIES[name]
            elif name:
                text = f"{name!r}; expected {' or '.join(_SEVERITIES)}"
                self._mistake(fields["severity"], f"{path}.severity: {text}")

    def _waiver(self, node: yaml.Node, path: str, waiver: v1.Waiver) -> None:
        known = ("gate_id", "model", "reason", "owner", "expire_time")
        fields = self._fields(node, path, known, known)
        waiver.gate_id = self._text(fields, path, "gate_id")
        waiver.model = self._text(fields, path, "model")
        waiver.reason = self._text(fields, path, "reason")
        waiver.owner = self._text(fields, path, "owner")
        if "expire_time" in fields and (moment := self._time(fields["expire_time"], path)):
            waiver.expire_time.CopyFrom(moment)

    def _fields(
        self, node: yaml.Node, path: str, known: tuple[str, ...], required: tuple[str, ...]
    ) -> dict[str, yaml.Node]:
        """The fields of a mapping by name; what is unknown, double or missing is a mistake."""
        self.places[path] = self._place(node)
        what = path or "the policy"
        if not isinstance(node, yaml.MappingNode):
            self._mistake(
                node, f"{what}: expected fields ({', '.join(known)}), found {_kind(node)}"
            )
            return {}
        found: dict[str, yaml.Node] = {}
        for key, value in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else _kind(key)
            if name not in known:
                error: ConfigError = unknown_name("field", name, known)
                self._mistake(key, f"{what}: {error}")
            elif name in found:
                self._mistake(key, f"{what}: {name} is given twice")
            else:
                found[name] = value
                self.places[f"{path}.{name}" if path else name] = self._place(value)
        for name in required:
            if name not in found:
                self._mistake(node, f"{what}: {name} is required")
        return found

    def _items(self, fields: dict[str, yaml.Node], name: str) -> Iterator[tuple[str, yaml.Node]]:
        node = fields.get(name)
        if node is None:
            return
        if not isinstance(node, yaml.SequenceNode):
            self._mistake(node, f"{name}: expected a list, found {_kind(node)}")
            return
        for number, item in enumerate(node.value):
            yield f"{name}[{number}]", item

    def _text(self, fields: dict[str, yaml.Node], path: str, name: str) -> str:
        node = fields.get(name)
        if node is None:
            return ""
        if not isinstance(node, yaml.ScalarNode) or _tag(node) != "str":
            place = f"{path}.{name}" if path else name
            self._mistake(node, f"{place}: expected text, found {_kind(node)}")
            return ""
        text: str = node.value
        return text

    def _time(self, node: yaml.Node, path: str) -> Timestamp | None:
        """A moment; a date means its end in UTC, so that a waiver counts on the day it names."""
        text = node.value if isinstance(node, yaml.ScalarNode) else ""
        found = None
        try:
            if len(text) == len("2026-12-31"):
                day = date.fromisoformat(text) + timedelta(days=1)
                found = datetime(day.year, day.month, day.day, tzinfo=UTC)
            else:
                found = datetime.fromisoformat(text)
        except (ValueError, OverflowError):
            pass
        if found is None or found.tzinfo is None:
            expected = "a date such as 2026-12-31, or a moment with its zone"
            self._mistake(node, f"{path}.expire_time: {text!r}; expected {expected}")
            return None
        moment = Timestamp()
        moment.FromDatetime(found)
        return moment

    def _mistake(self, node: yaml.Node, text: str) -> None:
        self.mistakes.append(f"{node.start_mark.line + 1}:{node.start_mark.column + 1}: {text}")

    def _place(self, node: yaml.Node) -> Place:
        first, column = node.start_mark.line, node.start_mark.column
        if not isinstance(node, yaml.ScalarNode):
            return Place(first + 1, column + 1)
        block = node.style in {"|", ">"}
        begin = first + 1 if block else first
        # A block ends where the next token begins, other scalars behind their last character.
        end = node.end_mark.line if block else node.end_mark.line + 1
        if not block and end == begin + 1:
            quoted = int(node.style is not None)
            return Place(
                first + 1, column + 1, ((first + 1, column + 1 + quoted, len(node.value)),)
            )
        return Place(first + 1, column + 1, self._rows(begin, end, node), node.style != "|")

    def _rows(
        self, begin: int, end: int, node: yaml.ScalarNode
    ) -> tuple[tuple[int, int, int], ...]:
        """Line, column and length of the lines of a scalar that has several."""
        rows = []
        indent: int | None = None
        for number in range(begin, min(end, len(self._lines))):
            line = self._lines[number]
            start = node.start_mark.column if number == node.start_mark.line else 0
            own = start + len(line[start:]) - len(line[start:].lstrip())
            if node.style == "|":  # the first line's indentation belongs to YAML, more does not
                indent = own if indent is None and line.strip() else indent
                own = indent or 0
            rows.append((number + 1, own + 1, max(0, len(line.rstrip()) - own)))
        return tuple(rows)


def _tag(node: yaml.Node) -> str:
    return str(node.tag).rpartition(":")[2]


def _kind(node: yaml.Node) -> str:
    unknown = f"the tag {node.tag} (text that starts with ! needs quotes)"
    return _KINDS.get(_tag(node), unknown)
