"""Protobuf messages of any content, with what might be taken for something in their fields."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from hypothesis import strategies as st

_INTEGERS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}
DEPTH = 4
"""Levels of messages within messages."""


def _token(content: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(content).encode()).decode()


ODD_TEXTS = (
    "",
    "x",
    "\0",
    "a\nb",
    "ÿ😀\u202e",
    "n" * 101,
    "n" * 5_000,
    "../../etc/passwd",
    "models/" + "3" * 64,
    "probes/" + "3" * 64,
    "blobs/" + "3" * 64,
    "audits/20200101-000000-abcdef",
    "audits/20200101-000000-abcdef/report",
    "audits/\0",
    "3" * 64,
    "٣" * 64,
    "report.distortion.norms.size() > 0",
    "report.model.sha256 == ''",
    "1 / 0 > 1",
    "1 +",
    "(" * 500,
    "[1].all(x, [1].all(y, x > y))",
    _token([1, "x"]),
    _token([10**30, "x"]),
    _token([-1, "\ud800"]),
    _token([True, "\0"]),
    _token([1.5, None]),
    base64.urlsafe_b64encode(b"[" * 100_000).decode(),
)
"""Names, digests, page tokens and expressions, right and wrong ones."""


@st.composite
def messages(
    draw: st.DrawFn, kind: type[Message], texts: Sequence[str] = (), depth: int = DEPTH
) -> Any:
    """Messages of a kind.

    Args:
        draw: Hypothesis'.
        kind: The message's class.
        texts: Further texts that fields may hold, such as names of what is there.
        depth: Levels of messages that it may have.
    """
    message = kind()
    fields = list(kind.DESCRIPTOR.fields)
    if not fields:
        return message
    chosen: list[Any] = draw(st.lists(st.sampled_from(fields), max_size=5, unique=True))
    for field in chosen:
        if field.message_type is None:
            count = draw(st.integers(0, 3)) if field.is_repeated else 1
            values = [draw(_scalars(field, texts)) for _ in range(count)]
            if field.is_repeated:
                getattr(message, field.name).extend(values)
            else:
                setattr(message, field.name, values[0])
        elif field.message_type.GetOptions().map_entry:
            key, value = (field.message_type.fields_by_name[name] for name in ("key", "value"))
            if value.message_type is None:
                getattr(message, field.name)[draw(_scalars(key, texts))] = draw(
                    _scalars(value, texts)
                )
        elif depth:
            inner = field.message_type._concrete_class
            made = draw(messages(inner, texts, depth - 1))
            if field.is_repeated:
                getattr(message, field.name).append(made)
            else:
                getattr(message, field.name).CopyFrom(made)
    return message


def _scalars(field: FieldDescriptor, texts: Sequence[str]) -> st.SearchStrategy[Any]:
    """What a field without a message may hold."""
    kind = field.cpp_type
    if field.type == FieldDescriptor.TYPE_BYTES:
        return st.binary(max_size=20)
    if kind == FieldDescriptor.CPPTYPE_STRING:
        known = st.sampled_from([*texts, *ODD_TEXTS])
        return st.one_of(known, st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return st.booleans()
    if kind in {FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE}:
        return st.floats(width=32 if kind == FieldDescriptor.CPPTYPE_FLOAT else 64)
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        return st.one_of(st.integers(0, 12), st.sampled_from([-1, 2**31 - 1]))
    least, most = _INTEGERS[kind]
    return st.one_of(st.integers(max(least, -2), 20), st.sampled_from([least, most, most // 2]))
