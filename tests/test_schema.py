"""The schema as its users see it."""

from __future__ import annotations

from google.protobuf import json_format

from onnx_audit import v1


def test_every_exported_name_exists() -> None:
    """Every name that the package lists can be had from it."""
    assert [name for name in v1.__all__ if not hasattr(v1, name)] == []


def test_infinite_distances_survive_json() -> None:
    """A probe without an example keeps its infinite distance in canonical JSON."""
    probe = v1.ProbeDistortion(probe=3, distance=float("inf"))
    assert json_format.Parse(json_format.MessageToJson(probe), v1.ProbeDistortion()) == probe
