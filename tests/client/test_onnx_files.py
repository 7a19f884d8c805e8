"""The walker over ONNX files against the onnx library."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, external_data_helper, helper, numpy_helper
from tests.client.models import external_tensor, write_model

from onnx_audit.errors import ModelFileError
from onnx_audit.onnx_files import external_locations


def locations_by_onnx(path: Path) -> list[str]:
    """What the onnx library's own walk over tensors finds."""
    model = onnx.load(path, load_external_data=False)
    return sorted(
        {
            external_data_helper.ExternalDataInfo(tensor).location
            for tensor in external_data_helper._get_all_tensors(model)
            if external_data_helper.uses_external_data(tensor)
        }
    )


def branching_model(folder: Path) -> onnx.ModelProto:
    """External tensors in an initializer, an attribute, a list, two subgraphs and a function."""

    def constant(name: str, tensor: TensorProto) -> onnx.NodeProto:
        return helper.make_node("Constant", [], [name], value=tensor)

    def branch(name: str, depth: int) -> onnx.GraphProto:
        nodes = [constant("v", external_tensor(f"{name}-t", f"{name}{depth}.bin", folder))]
        if depth:
            inner = branch(name, depth - 1)
            nodes.append(helper.make_node("If", ["c"], ["z"], then_branch=inner, else_branch=inner))
        output = helper.make_tensor_value_info("v", TensorProto.FLOAT, None)
        return helper.make_graph(
            nodes, name, [], [output], [external_tensor(f"{name}-i", "shared.bin", folder)]
        )

    listed = helper.make_node("Custom", ["x"], ["q"], domain="d")
    listed.attribute.append(
        helper.make_attribute("many", [external_tensor("l", "list.bin", folder)])
    )
    graphs = helper.make_node("Custom", ["x"], ["r"], domain="d")
    graphs.attribute.append(helper.make_attribute("graphs", [branch("g", 1)]))
    choose = helper.make_node(
        "If", ["c"], ["y"], then_branch=branch("a", 2), else_branch=branch("b", 0)
    )
    graph = helper.make_graph(
        [constant("k", external_tensor("k", "sub/k.bin", folder)), listed, graphs, choose],
        "main",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [
            external_tensor("w", "w.bin", folder),
            numpy_helper.from_array(np.zeros(100_000, np.float32), "embedded"),
        ],
    )
    function = helper.make_function(
        "d",
        "F",
        ["x"],
        ["y"],
        [constant("y", external_tensor("f", "function.bin", folder))],
        [helper.make_opsetid("", 20)],
    )
    return helper.make_model(graph, functions=[function])


def test_locations_are_those_that_onnx_finds(tmp_path: Path) -> None:
    """Initializers, attributes, tensor and graph lists, nested branches: all as onnx sees them."""
    path = tmp_path / "m.onnx"
    model = branching_model(tmp_path)
    path.write_bytes(model.SerializeToString())
    found = external_locations(path)
    # The library's walk leaves functions out.
    assert found == sorted({*locations_by_onnx(path), "function.bin"})
    assert {"w.bin", "sub/k.bin", "list.bin", "a0.bin", "a2.bin", "g0.bin"} < set(found)


def test_sparse_initializers_are_followed(tmp_path: Path) -> None:
    """Values and indices of a sparse tensor may lie outside the file too."""
    path = write_model(tmp_path / "m.onnx")
    model = onnx.load(path)
    sparse = model.graph.sparse_initializer.add()
    sparse.values.CopyFrom(external_tensor("s", "values.bin", tmp_path))
    sparse.indices.CopyFrom(external_tensor("i", "indices.bin", tmp_path))
    path.write_bytes(model.SerializeToString())
    assert external_locations(path) == ["indices.bin", "values.bin"]


def test_locations_of_a_model_that_onnx_saved(tmp_path: Path) -> None:
    """A file as `onnx.save` writes it with external data is read as it was meant."""
    path = write_model(tmp_path / "m.onnx")
    onnx.save(
        onnx.load(path),
        path,
        save_as_external_data=True,
        location="m.onnx.data",
        size_threshold=0,
    )
    assert external_locations(path) == ["m.onnx.data"] == locations_by_onnx(path)


def test_embedded_tensors_need_no_files(tmp_path: Path) -> None:
    """External entries of a tensor that is not marked external are of no effect."""
    path = write_model(tmp_path / "m.onnx", external=["left.bin"])
    model = onnx.load(path, load_external_data=False)
    model.graph.initializer[1].data_location = TensorProto.DEFAULT
    path.write_bytes(model.SerializeToString())
    assert external_locations(path) == [] == locations_by_onnx(path)


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "a/../../b", "", "..\\x"])
def test_locations_outside_the_folder_are_refused(tmp_path: Path, location: str) -> None:
    """A model cannot make its user upload files from elsewhere."""
    path = write_model(tmp_path / "m.onnx", external=["w.bin"])
    model = onnx.load(path, load_external_data=False)
    model.graph.initializer[1].external_data[0].value = location
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelFileError, match="own folder"):
        external_locations(path)


@pytest.mark.parametrize("content", [b"", b"\x80\x02}q\x00.", b"PK\x03\x04" + b"0" * 50, b"\x3a"])
def test_other_files_are_not_onnx(tmp_path: Path, content: bytes) -> None:
    """Empty files, pickles and archives are told from models."""
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=r"expected an ONNX model|not an ONNX file"):
        external_locations(path)


@given(data=st.data())
def test_damaged_files_are_errors_or_readable(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever the bytes, the walk ends with locations or with ModelFileError."""
    folder = tmp_path_factory.mktemp("damaged")
    content = bytearray(write_model(folder / "m.onnx", external=["w.bin"]).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(1, len(content)))
    path = folder / "damaged.onnx"
    path.write_bytes(content[:cut])
    with contextlib.suppress(ModelFileError):
        assert isinstance(external_locations(path), list)


def test_a_sparse_file_of_gigabytes_costs_no_memory(tmp_path: Path) -> None:
    """Embedded weights are stepped over: a 3 GB tensor in the file is never read."""
    path = write_model(tmp_path / "m.onnx", external=["w.bin"])
    small = path.read_bytes()
    size = 3 << 30
    # One more unknown bytes field (number 99) of 3 GB, left as a hole in the file.
    header = bytes([0x9A, 0x06]) + onnx_varint(size)
    with path.open("wb") as file:
        file.write(small + header)
        os.ftruncate(file.fileno(), len(small) + len(header) + size)
    assert external_locations(path) == ["w.bin"]


def onnx_varint(value: int) -> bytes:
    """A variable-length integer of the protobuf wire format."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
