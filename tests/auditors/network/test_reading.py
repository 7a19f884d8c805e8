"""Hostile and broken files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.external_data_helper
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.support import graph_model

from onnx_auditors.errors import InvalidModel, LimitExceeded, UnsupportedOperator
from onnx_auditors.network import Limits, Network, load

W = np.ones((4, 3), np.float32)


def linear() -> onnx.ModelProto:
    return graph_model([helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": ["n", 4]}, {"w": W})


@pytest.mark.parametrize("content", [b"", b"\x00" * 64, b"PK\x03\x04 not a model", b"\xff" * 100])
def test_not_onnx(content: bytes) -> None:
    """Bytes of another kind are no model."""
    with pytest.raises(InvalidModel):
        load(content)


def test_every_truncation_is_refused() -> None:
    """A file cut short anywhere is refused, or is not the same model: it never loads silently."""
    content = linear().SerializeToString()
    for length in range(0, len(content) - 1, 3):
        with pytest.raises((InvalidModel, UnsupportedOperator)):
            load(content[:length])


def test_cycle_is_named() -> None:
    """A cyclic graph is refused with the nodes on the cycle."""
    nodes = [
        helper.make_node("Add", ["x", "b"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["b"], name="second"),
        helper.make_node("Relu", ["a"], ["y"]),
    ]
    with pytest.raises(InvalidModel, match=r"cyclic.*(first|second)"):
        load(graph_model(nodes, {"x": [1, 2]}, check=False))


def test_nodes_out_of_order_are_sorted() -> None:
    """Node order does not matter, as it does not to ONNX Runtime."""
    nodes = [helper.make_node("Relu", ["h"], ["y"]), helper.make_node("Neg", ["x"], ["h"])]
    model = graph_model(list(reversed(nodes)), {"x": [1, 2]})
    first, second = model.graph.node
    swapped = onnx.ModelProto()
    swapped.CopyFrom(model)
    del swapped.graph.node[:]
    swapped.graph.node.extend([second, first])
    assert load(swapped).classes == 2


def test_all_unsupported_nodes_are_listed() -> None:
    """The error names operator, node, domain and opset of every node that cannot be formed."""
    nodes = [
        helper.make_node("Multinomial", ["x"], ["a"], name="dice"),
        helper.make_node("MurmurHash3", ["a"], ["b"], name="hash", domain="com.microsoft"),
        helper.make_node("Bernoulli", ["b"], ["y"], name="coin"),
    ]
    model = graph_model(nodes, {"x": [1, 2, 2]}, check=False)
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, [1]))
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    with pytest.raises(UnsupportedOperator) as error:
        load(model)
    for word in (
        "Multinomial",
        "dice",
        "MurmurHash3",
        "com.microsoft",
        "Bernoulli",
        "coin",
        "opset 21",
    ):
        assert word in str(error.value)


def test_limits() -> None:
    """Each limit is checked, and the message has what was found and what is allowed."""
    with pytest.raises(LimitExceeded, match="at most 0"):
        load(linear(), limits=Limits(max_nodes=0))
    with pytest.raises(LimitExceeded, match="48 bytes of weights"):
        load(linear(), limits=Limits(max_initializer_bytes=47))
    with pytest.raises(LimitExceeded, match="axis"):
        load(linear(), limits=Limits(max_dimension=3))
    with pytest.raises(LimitExceeded, match="ONNX file"):
        load(linear().SerializeToString(), limits=Limits(max_model_bytes=10))


def test_a_small_file_that_computes_a_huge_constant() -> None:
    """Constant folding stops before it fills the memory."""
    nodes = [
        helper.make_node("Expand", ["w", "s"], ["h"]),
        helper.make_node("ReduceSum", ["h"], ["r"]),
        helper.make_node("Add", ["x", "r"], ["y"]),
    ]
    weights = {"w": np.ones(1, np.float32), "s": np.array([2**20, 2**20])}
    with pytest.raises(LimitExceeded, match="'h'"):
        load(graph_model(nodes, {"x": [1, 1]}, weights))


def function_model(calls: int, levels: int) -> onnx.ModelProto:
    """Returns a model whose functions call each other: calls ** levels nodes."""
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("own", 1)]
    functions = []
    for level in range(levels):
        inner = ("Relu", "") if level == 0 else (f"f{level - 1}", "own")
        names = ["a", *(f"t{i}" for i in range(calls - 1)), "b"]
        nodes = [
            helper.make_node(inner[0], [names[i]], [names[i + 1]], domain=inner[1])
            for i in range(calls)
        ]
        functions.append(helper.make_function("own", f"f{level}", ["a"], ["b"], nodes, opsets))
    graph = helper.make_graph(
        [helper.make_node(f"f{levels - 1}", ["x"], ["y"], domain="own")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3])],
    )
    return helper.make_model(graph, functions=functions, opset_imports=opsets, ir_version=10)


def test_local_functions_are_written_out() -> None:
    """Functions of the file become part of the graph."""
    network = load(function_model(calls=2, levels=3))
    assert isinstance(network, Network)
    assert network.classes == 3


def test_functions_that_multiply_are_counted_first() -> None:
    """A few functions that stand for 10^12 nodes are refused without writing them out."""
    with pytest.raises(LimitExceeded, match="1,000,000,000,000 nodes"):
        load(function_model(calls=10, levels=12))


def test_nesting_is_counted_through_functions() -> None:
    """Subgraphs in functions that subgraphs call are as deep as they are when written out."""
    branch = helper.make_graph(
        [helper.make_node("f0", ["x"], ["b"], domain="own")],
        "branch",
        [],
        [helper.make_tensor_value_info("b", TensorProto.FLOAT, [1, 3])],
    )
    model = function_model(calls=1, levels=2)
    node = model.functions[1].node[0]
    node.CopyFrom(
        helper.make_node("If", ["yes"], ["b"], name="n", then_branch=branch, else_branch=branch)
    )
    for graph in (node.attribute[0].g, node.attribute[1].g):
        graph.node[0].input[0] = "a"
    yes = helper.make_node("Constant", [], ["yes"], value=numpy_helper.from_array(np.array(True)))
    model.functions[1].node.insert(0, yes)
    load(model, limits=Limits(max_subgraph_depth=1))
    with pytest.raises(LimitExceeded, match="1 levels of subgraphs; at most 0"):
        load(model, limits=Limits(max_subgraph_depth=0))
    inner = model.functions[0].node[0]
    inner.CopyFrom(node)
    for graph in (inner.attribute[0].g, inner.attribute[1].g):
        graph.node[0].CopyFrom(helper.make_node("Relu", ["a"], ["b"]))
    model.functions[0].node.insert(0, yes)
    load(model, limits=Limits(max_subgraph_depth=2))
    with pytest.raises(LimitExceeded, match="2 levels of subgraphs; at most 1"):
        load(model, limits=Limits(max_subgraph_depth=1))


def external(folder: Path) -> onnx.ModelProto:
    model = linear()
    path = folder / "model.onnx"
    onnx.save_model(model, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    return onnx.load(path, load_external_data=False)


def relocate(model: onnx.ModelProto, **entries: str) -> onnx.ModelProto:
    for entry in model.graph.initializer[0].external_data:
        entry.value = entries.get(entry.key, entry.value)
    return model


def test_external_data_inside_the_folder(tmp_path: Path) -> None:
    """External data beside the model is read, and takes part in the model's digest."""
    external(tmp_path)
    before = load(tmp_path / "model.onnx").summary.sha256
    content = bytearray((tmp_path / "w.bin").read_bytes())
    content[3] ^= 1
    (tmp_path / "w.bin").write_bytes(content)
    assert load(tmp_path / "model.onnx").summary.sha256 != before


@pytest.mark.parametrize("location", ["../w.bin", "/etc/passwd", "a/../../w.bin", "", "a\\b", "."])
def test_external_data_outside_the_folder(location: str, tmp_path: Path) -> None:
    """A location that may leave the folder is refused before anything is opened."""
    folder = tmp_path / "upload"
    folder.mkdir()
    model = relocate(external(folder), location=location)
    (tmp_path / "w.bin").write_bytes(W.tobytes())
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(InvalidModel, match="external file"):
        load(folder / "model.onnx")


def test_external_data_behind_a_link(tmp_path: Path) -> None:
    """A symbolic link inside the folder is refused."""
    folder = tmp_path / "upload"
    folder.mkdir()
    external(folder)
    (folder / "w.bin").rename(tmp_path / "w.bin")
    (folder / "w.bin").symlink_to(tmp_path / "w.bin")
    with pytest.raises(InvalidModel, match="symbolic link"):
        load(folder / "model.onnx")


@pytest.mark.parametrize("entries", [{"offset": "8"}, {"length": "1000"}, {"offset": "-4"}])
def test_external_data_that_is_too_short(entries: dict[str, str], tmp_path: Path) -> None:
    """Offsets and lengths outside the file are refused."""
    model = external(tmp_path)
    tensor = model.graph.initializer[0]
    del tensor.external_data[:]
    for key, value in ({"location": "w.bin"} | entries).items():
        tensor.external_data.add(key=key, value=value)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(InvalidModel, match="needs 48 bytes"):
        load(tmp_path / "model.onnx")


def test_external_data_that_is_missing(tmp_path: Path) -> None:
    """Missing external data is named, for a path and for bytes."""
    model = external(tmp_path)
    (tmp_path / "w.bin").unlink()
    for source in (tmp_path / "model.onnx", model.SerializeToString()):
        with pytest.raises(InvalidModel, match=r"w\.bin"):
            load(source)
