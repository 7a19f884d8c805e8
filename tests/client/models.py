"""Small ONNX files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def external_tensor(name: str, location: str, folder: Path, values: int = 6) -> TensorProto:
    """A float tensor whose data is written to a file beside the model."""
    data = np.arange(values, dtype=np.float32) + len(location)
    tensor = numpy_helper.from_array(data, name)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0")):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    file = folder / location
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data.tobytes())
    return tensor


def write_model(path: Path, *, padding: int = 0, external: list[str] | None = None) -> Path:
    """Writes a model that adds its weights to its input; `padding` makes the file larger."""
    weights = [numpy_helper.from_array(np.zeros(6, np.float32), "w")]
    weights += [
        external_tensor(f"e{number}", location, path.parent)
        for number, location in enumerate(external or [])
    ]
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 6])],
        weights,
        doc_string="." * padding,
    )
    path.write_bytes(onnx.ModelProto.SerializeToString(helper.make_model(graph)))
    return path
