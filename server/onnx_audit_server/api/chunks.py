"""Messages of an upload, read without copies of the content in them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from onnx_audit import v1

_DATA: Final = v1.WriteRequest.DESCRIPTOR.fields_by_name["data"].number << 3 | 2
"""How the content begins on the wire: the field's number, and that a length follows."""
_LENGTH, _VARINT = 2, 0
"""Wire types: what has a length, and integers."""
_MORE: Final = 128
"""Set in all bytes of an integer but its last."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A WriteRequest whose content lies where gRPC has put it.

    Attributes:
        request: The message without the content.
        data: The content.
    """

    request: v1.WriteRequest
    data: memoryview


def read_chunk(message: bytes) -> Chunk:
    """Reads a serialised WriteRequest as protobuf does, but that the content is not copied.

    Raises:
        google.protobuf.message.DecodeError: It is none.
    """
    found = _find_data(message)
    if found is None:
        request = v1.WriteRequest.FromString(message)
        data = memoryview(request.data)
        request.ClearField("data")
        return Chunk(request, data)
    begin, start, end = found
    request = v1.WriteRequest.FromString(message[:begin] + message[end:])
    return Chunk(request, memoryview(message)[start:end])


def _find_data(message: bytes) -> tuple[int, int, int] | None:
    """Where the field with the content begins, and where its content begins and ends.

    None where it is not there exactly once, or there is anything unusual: protobuf knows what then.
    """
    found = None
    position = 0
    # Whoever sends a field more than once must not keep the loop of all calls busy here.
    for _ in v1.WriteRequest.DESCRIPTOR.fields:
        if position >= len(message):
            break
        begin = position
        tag, position = _varint(message, position)
        value, position = _varint(message, position)
        if tag & 7 == _LENGTH:
            start, position = position, position + value
            if tag == _DATA:
                if found is not None:
                    return None
                found = begin, start, position
        elif tag & 7 != _VARINT:
            return None
    return found if position == len(message) else None


def _varint(message: bytes, position: int) -> tuple[int, int]:
    """An integer of seven bits a byte, and where it ends; behind the message where it does not."""
    value = 0
    for place, byte in enumerate(message[position : position + 10]):
        value |= (byte & ~_MORE) << 7 * place
        if not byte & _MORE:
            return value, position + place + 1
    return value, len(message) + 1
