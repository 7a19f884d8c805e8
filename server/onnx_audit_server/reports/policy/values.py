"""A report as the dicts and lists that expressions are evaluated on.

CEL reads an absent field of a protobuf message as its default: a section that did not run would
have an accuracy of 0, a missing bound would be 0 and pass. Here what is not there is an absent key,
which CEL answers with an error, so that a figure that is missing never counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

from google.protobuf.message import Message

Plain: TypeAlias = dict[str, Any]
Field: TypeAlias = Any
"""A FieldDescriptor: of one class in Python and another in C."""

_KEPT_AS_MESSAGES = frozenset({"google.protobuf.Duration", "google.protobuf.Timestamp"})
_MEANT_WHEN_EMPTY = frozenset({"warnings"})
"""Lists of messages whose being empty says something. Others hold figures: one without entries was
not asked for, and `all()` over it would hold."""
_TABLES = frozenset(
    {
        "ClassDistortion",
        "ClassPairDistortion",
        "ProbeCertificate",
        "ProbeDistortion",
        "ProbeNoise",
        "UnitRow",
    }
)
"""Rows of tables that may have thousands of them, which every look at a section would copy."""


def plain(message: Message, tables: Callable[[str], bool] = lambda _: True) -> Plain:
    """A message as a dict by field name.

    Absent are messages and optional fields that are not set, estimates without content (one that is
    0 has a count), lists of messages without entries (warnings aside), and doubles that are NaN.
    Enums are ints, durations and timestamps messages; a NaN in a list is None, with which CEL
    compares nothing.

    Args:
        message: The message.
        tables: Whether the table (of probes, classes or units) in a field of this name is wanted.
    """
    found: Plain = {}
    for field in message.DESCRIPTOR.fields_by_name.values():
        kind = field.message_type
        if kind is not None and kind.name in _TABLES and not tables(field.name):
            continue
        value = getattr(message, field.name)
        if is_map(field):
            assert kind is not None  # noqa: S101 - maps have entries
            entry = kind.fields_by_name["value"]
            found[field.name] = {key: _single(entry, value[key], tables) for key in value}
        elif field.is_repeated:
            items = [_single(field, item, tables) for item in value]
            if items or kind is None or field.name in _MEANT_WHEN_EMPTY:
                found[field.name] = items
        elif not field.has_presence or _is_set(message, field):
            single = _single(field, value, tables)
            if single is not None:
                found[field.name] = single
    return found


def _is_set(message: Message, field: Field) -> bool:
    if not message.HasField(field.name):
        return False
    kind = field.message_type
    if kind is None or kind.full_name != "onnx_audit.v1.Estimate":
        return True
    return bool(getattr(message, field.name).ByteSize())


def is_map(field: Field) -> bool:
    """Whether the field is a map."""
    kind = field.message_type
    return bool(kind is not None and kind.GetOptions().map_entry)


def _single(
    field: Field,
    value: Any,  # noqa: ANN401 - any field's value
    tables: Callable[[str], bool],
) -> Any:  # noqa: ANN401
    """One value; None for NaN."""
    if field.message_type is not None:
        return value if field.message_type.full_name in _KEPT_AS_MESSAGES else plain(value, tables)
    if isinstance(value, float) and math.isnan(value):
        return None
    return value
