"""What a model says of itself, as the schema's messages."""

from __future__ import annotations

import math
from collections import Counter

import onnx

from onnx_audit import v1
from onnx_auditors.errors import InvalidModel


def summarize(proto: onnx.ModelProto, sha256: str) -> v1.ModelSummary:
    """Returns the summary of a model, as uploaded.

    Args:
        proto: The model.
        sha256: Digest that names it.

    Raises:
        InvalidModel: An input or output has an element type that there is not.
    """
    graph = proto.graph
    stored = {tensor.name for tensor in graph.initializer}
    operators = Counter(f"{n.domain}.{n.op_type}".lstrip(".") for n in graph.node)
    return v1.ModelSummary(
        sha256=sha256,
        inputs=[tensor_info(i) for i in graph.input if i.name not in stored],
        outputs=[tensor_info(o) for o in graph.output],
        opset=max(
            (o.version for o in proto.opset_import if o.domain in {"", "ai.onnx"}), default=0
        ),
        ir_version=proto.ir_version,
        producer=f"{proto.producer_name} {proto.producer_version}".strip(),
        node_count=len(graph.node),
        parameter_count=sum(math.prod(t.dims) for t in graph.initializer),
        operators=[
            v1.OperatorCount(op_type=name, count=count)
            for name, count in sorted(operators.items(), key=lambda item: (-item[1], item[0]))
        ],
    )


def tensor_info(value: onnx.ValueInfoProto) -> v1.TensorInfo:
    """Returns name, element type and shape of a graph's input or output; open axes are -1.

    Raises:
        InvalidModel: There is no such element type.
    """
    tensor = value.type.tensor_type
    if tensor.elem_type not in onnx.TensorProto.DataType.values():
        raise InvalidModel(f"'{value.name}' has the unknown element type {tensor.elem_type}")
    return v1.TensorInfo(
        name=value.name,
        dtype=onnx.TensorProto.DataType.Name(tensor.elem_type).lower(),
        shape=[d.dim_value if d.HasField("dim_value") else -1 for d in tensor.shape.dim],
    )
