"""Chunks are what protobuf reads."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError
from hypothesis import example, given
from hypothesis import strategies as st

from onnx_audit import v1
from onnx_audit_server.api.chunks import Chunk, read_chunk

PARTS = st.one_of(
    st.builds(v1.WriteRequest, sha256=st.text(max_size=3)),
    st.builds(v1.WriteRequest, write_offset=st.integers(-(2**63), 2**63 - 1)),
    st.builds(v1.WriteRequest, data=st.binary(max_size=300)),
    st.builds(v1.WriteRequest, finish_write=st.booleans()),
).map(lambda part: part.SerializeToString())
ODD = st.sampled_from(
    [
        b"\x1a\x00",  # content of no length
        b"\x9a\x00\x01a",  # the same tag in two bytes
        b"\x18\x05",  # an integer where the content should be
        b"\x5d\x00\x00\x00\x00",  # a field that is not known, of four bytes
        b"\x59" + bytes(8),  # of eight
        b"\x5b\x5c",  # a group
        b"\x50\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01",  # an integer of ten bytes
        b"\x0a\x01\xff",  # text that is none
        b"\x00\x00",  # field 0
    ]
)
MESSAGES = st.lists(PARTS | ODD | st.binary(max_size=3), max_size=6).map(b"".join)


@given(MESSAGES)
@example(v1.WriteRequest(data=b"a" * 2**21, finish_write=True).SerializeToString())
@example(v1.WriteRequest(data=b"a" * 200).SerializeToString()[:-1])
@example(b"\x08" + b"\x80" * 10 + b"\x01")
def test_chunks_are_what_protobuf_reads(message: bytes) -> None:
    """Whatever comes, both read the same, or both refuse it."""
    try:
        whole = v1.WriteRequest.FromString(message)
    except DecodeError:
        with pytest.raises(DecodeError):
            read_chunk(message)
        return
    chunk: Chunk = read_chunk(message)
    assert chunk.data == whole.data
    assert not chunk.request.data
    chunk.request.data = bytes(chunk.data)
    assert chunk.request == whole
