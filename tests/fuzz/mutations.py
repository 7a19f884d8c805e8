"""Changes of ONNX models that leave most of a model whole, so that they get past the parser."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import TypeVar

import onnx
import onnx.defs
from google.protobuf.message import DecodeError, EncodeError
from onnx import AttributeProto, TensorProto, ValueInfoProto, helper

T = TypeVar("T")

NUMBERS = (0, 1, 2, 3, 7, 64, 10**6, 2**31 - 1, 2**31, 2**32, 2**62, 2**63 - 1, -1, -2, -(2**63))
FLOATS = (0.0, 1.0, -1.0, 1e-30, 1e30, float("inf"), float("-inf"), float("nan"))
TEXTS = ("", "x", "logits", "SAME_UPPER", "linear", "a/../b", "\0", "ÿ", "n" * 300)
LOCATIONS = ("w.bin", "../w.bin", "/etc/passwd", "w.bin/x", "", ".", "\0", "d" * 300, "model.onnx")
DOMAINS = ("", "ai.onnx", "com.microsoft", "ai.onnx.ml", "com.example")
_TYPES = (
    AttributeProto.UNDEFINED,
    AttributeProto.FLOAT,
    AttributeProto.INT,
    AttributeProto.STRING,
    AttributeProto.TENSOR,
    AttributeProto.GRAPH,
    AttributeProto.SPARSE_TENSOR,
    AttributeProto.TYPE_PROTO,
    AttributeProto.INTS,
    AttributeProto.GRAPHS,
)
OPERATORS = tuple(sorted({schema.name for schema in onnx.defs.get_all_schemas()}))


def mutate(content: bytes, seed: int) -> bytes:
    """Returns a changed model; the bytes as they are where they are no model.

    Args:
        content: Bytes of an ONNX file.
        seed: Says which change it is.
    """
    dice = random.Random(seed)  # noqa: S311 - choices of a fuzzer
    try:
        model = onnx.ModelProto.FromString(content)
        for _ in range(dice.choice((1, 1, 2, 4))):
            dice.choice(_CHANGES)(model, dice)
        return model.SerializeToString()
    except (DecodeError, EncodeError, ValueError):
        return content  # a name that is no text, or more than protobuf would write


def _graphs(model: onnx.ModelProto) -> list[onnx.GraphProto]:
    """The graph and all below it."""

    def below(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
        yield graph
        for node in graph.node:
            for attribute in node.attribute:
                for inner in [attribute.g] if attribute.HasField("g") else [*attribute.graphs]:
                    yield from below(inner)

    return list(below(model.graph))


def _some(items: list[T], dice: random.Random) -> list[T]:
    """One of the items, or none where there is none."""
    return [dice.choice(items)] if items else []


def _node(model: onnx.ModelProto, dice: random.Random) -> list[onnx.NodeProto]:
    nodes = [node for graph in _graphs(model) for node in graph.node]
    nodes += [node for function in model.functions for node in function.node]
    return _some(nodes, dice)


def _tensor(model: onnx.ModelProto, dice: random.Random) -> list[TensorProto]:
    tensors = [tensor for graph in _graphs(model) for tensor in graph.initializer]
    nodes = [node for graph in _graphs(model) for node in graph.node]
    tensors += [a.t for node in nodes for a in node.attribute if a.HasField("t")]
    return _some(tensors, dice)


def _name(model: onnx.ModelProto, dice: random.Random) -> str:
    graph = dice.choice(_graphs(model))
    names = [name for node in graph.node for name in (*node.input, *node.output)]
    names += [tensor.name for tensor in graph.initializer] + [value.name for value in graph.input]
    return dice.choice([*names, "", "new"])


def _resize_tensor(model: onnx.ModelProto, dice: random.Random) -> None:
    for tensor in _tensor(model, dice):
        if tensor.dims and dice.random() < 0.7:
            tensor.dims[dice.randrange(len(tensor.dims))] = dice.choice(NUMBERS)
        else:
            tensor.dims.append(dice.choice(NUMBERS))


def _retype_tensor(model: onnx.ModelProto, dice: random.Random) -> None:
    for tensor in _tensor(model, dice):
        tensor.data_type = dice.choice([*range(28), 99])


def _refill_tensor(model: onnx.ModelProto, dice: random.Random) -> None:
    for tensor in _tensor(model, dice):
        choice = dice.randrange(4)
        if choice == 0:
            tensor.raw_data = tensor.raw_data[: len(tensor.raw_data) // 2]
        elif choice == 1:
            tensor.raw_data = dice.randbytes(len(tensor.raw_data))
        elif choice == 2:
            tensor.int64_data.append(dice.choice(NUMBERS))
        else:
            tensor.ClearField("raw_data")
            tensor.float_data.extend(dice.choices(FLOATS, k=dice.randrange(5)))


def _externalise_tensor(model: onnx.ModelProto, dice: random.Random) -> None:
    for tensor in _tensor(model, dice):
        tensor.data_location = TensorProto.EXTERNAL
        tensor.ClearField("raw_data")
        del tensor.external_data[:]
        for key, values in (("location", LOCATIONS), ("offset", NUMBERS), ("length", NUMBERS)):
            if dice.random() < 0.8:
                tensor.external_data.add(key=key, value=str(dice.choice(values)))


def _rename(model: onnx.ModelProto, dice: random.Random) -> None:
    for node in _node(model, dice):
        names = dice.choice((node.input, node.output))
        if names and dice.random() < 0.7:
            names[dice.randrange(len(names))] = _name(model, dice)
        else:
            names.append(_name(model, dice))


def _shorten(model: onnx.ModelProto, dice: random.Random) -> None:
    for node in _node(model, dice):
        names = dice.choice((node.input, node.output))
        if names:
            names.pop()


def _reoperate(model: onnx.ModelProto, dice: random.Random) -> None:
    for node in _node(model, dice):
        node.op_type = dice.choice(OPERATORS)
        if dice.random() < 0.3:
            node.domain = dice.choice(DOMAINS)


def _repeat_node(model: onnx.ModelProto, dice: random.Random) -> None:
    graph = dice.choice(_graphs(model))
    for node in _some(list(graph.node), dice):
        graph.node.add().CopyFrom(node)


def _drop_node(model: onnx.ModelProto, dice: random.Random) -> None:
    graph = dice.choice(_graphs(model))
    if graph.node:
        del graph.node[dice.randrange(len(graph.node))]


def _change_attribute(model: onnx.ModelProto, dice: random.Random) -> None:
    for node in _node(model, dice):
        for attribute in _some(list(node.attribute), dice):
            _change(attribute, dice)


def _change(attribute: AttributeProto, dice: random.Random) -> None:
    match attribute.type:
        case AttributeProto.INT:
            attribute.i = dice.choice(NUMBERS)
        case AttributeProto.FLOAT:
            attribute.f = dice.choice(FLOATS)
        case AttributeProto.STRING:
            attribute.s = dice.choice((b"", b"\xff\xfe", b"VALID", b"max", b"cubic"))
        case AttributeProto.INTS if attribute.ints and dice.random() < 0.7:
            attribute.ints[dice.randrange(len(attribute.ints))] = dice.choice(NUMBERS)
        case AttributeProto.INTS:
            attribute.ints.append(dice.choice(NUMBERS))
        case _:
            attribute.type = dice.choice(_TYPES)


def _add_attribute(model: onnx.ModelProto, dice: random.Random) -> None:
    for node in _node(model, dice):
        schemas = [s for s in onnx.defs.get_all_schemas() if s.name == node.op_type]
        names = [*(name for schema in schemas for name in schema.attributes), "new"]
        value = dice.choice((dice.choice(NUMBERS), dice.choice(FLOATS), [1, -1], "text"))
        node.attribute.append(helper.make_attribute(dice.choice(names), value))


def _drop_attribute(model: onnx.ModelProto, dice: random.Random) -> None:
    for node in _node(model, dice):
        if node.attribute:
            del node.attribute[dice.randrange(len(node.attribute))]


def _info(model: onnx.ModelProto, dice: random.Random) -> list[ValueInfoProto]:
    graph = dice.choice(_graphs(model))
    return _some([*graph.input, *graph.output, *graph.value_info], dice)


def _reshape_value(model: onnx.ModelProto, dice: random.Random) -> None:
    for info in _info(model, dice):
        shape = info.type.tensor_type.shape
        if not shape.dim or dice.random() < 0.2:
            shape.dim.add()
        axis = dice.choice(list(shape.dim))
        if dice.random() < 0.3:
            axis.dim_param = dice.choice(TEXTS)
        else:
            axis.dim_value = dice.choice(NUMBERS)


def _retype_value(model: onnx.ModelProto, dice: random.Random) -> None:
    for info in _info(model, dice):
        if dice.random() < 0.2:
            info.type.sequence_type.elem_type.tensor_type.elem_type = 1
        else:
            info.type.tensor_type.elem_type = dice.choice([*range(28), 99])


def _rename_value(model: onnx.ModelProto, dice: random.Random) -> None:
    for info in _info(model, dice):
        info.name = _name(model, dice)


def _repeat_value(model: onnx.ModelProto, dice: random.Random) -> None:
    graph = dice.choice(_graphs(model))
    values = dice.choice((graph.input, graph.output))
    if values and dice.random() < 0.5:
        values.add().CopyFrom(values[0])
    elif values:
        del values[dice.randrange(len(values))]


def _nest(model: onnx.ModelProto, dice: random.Random) -> None:
    """Puts a node into the branches of an If."""
    graph = dice.choice(_graphs(model))
    for node in _some(list(graph.node), dice):
        outputs = [helper.make_empty_tensor_value_info(name) for name in node.output]
        branch = helper.make_graph([node], "branch", [], outputs)
        condition = _name(model, dice)
        outer = helper.make_node(
            "If", [condition], list(node.output), then_branch=branch, else_branch=branch
        )
        node.CopyFrom(outer)


def _make_function(model: onnx.ModelProto, dice: random.Random) -> None:
    """Has a node done by a function of the model, which may call itself."""
    for node in _node(model, dice):
        name = dice.choice((node.op_type, "own"))
        domain = dice.choice((node.domain, "own"))
        opsets = list(model.opset_import)
        function = helper.make_function(
            domain, name, list(node.input), list(node.output), [node], opsets
        )
        model.functions.append(function)
        node.op_type, node.domain = name, domain


def _change_opset(model: onnx.ModelProto, dice: random.Random) -> None:
    for opset in _some(list(model.opset_import), dice):
        opset.version = dice.choice((*range(30), *NUMBERS))


def _make_sparse(model: onnx.ModelProto, dice: random.Random) -> None:
    for tensor in _tensor(model, dice):
        sparse = model.graph.sparse_initializer.add()
        sparse.values.CopyFrom(tensor)
        sparse.indices.CopyFrom(tensor)
        sparse.dims.extend(dice.choices(NUMBERS, k=2))


_CHANGES: tuple[Callable[[onnx.ModelProto, random.Random], None], ...] = (
    _resize_tensor,
    _retype_tensor,
    _refill_tensor,
    _externalise_tensor,
    _rename,
    _rename,
    _shorten,
    _reoperate,
    _reoperate,
    _repeat_node,
    _drop_node,
    _change_attribute,
    _change_attribute,
    _add_attribute,
    _drop_attribute,
    _reshape_value,
    _retype_value,
    _rename_value,
    _repeat_value,
    _nest,
    _make_function,
    _change_opset,
    _make_sparse,
)
