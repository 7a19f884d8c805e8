"""Linear classifiers on values of networks that have no classes of their own.

An autoencoder or an embedding becomes auditable when a linear layer is fitted on one of its values,
as Szegedy et al. 2013 do with their autoencoders. The layer is written into the model, so that the
network and ONNX Runtime both run the same file.
"""

from __future__ import annotations

import json

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from onnx_auditors.errors import InvalidModel, ProbesDoNotFit
from onnx_auditors.network.loading import load
from onnx_auditors.network.network import Network
from onnx_auditors.network.outputs import FLOATS

OUTPUT = "linear_head"
RECORD = "onnx_audit.linear_head"
"""Key among the model's metadata under which the fit is recorded, as JSON."""
_ITERATIONS = 200
_SPREAD = 1e-2
_BATCH = 256
_LEAST_CLASSES = 2


def fit_linear_head(
    network: Network,
    value: str,
    inputs: Tensor,
    labels: Tensor,
    *,
    l2: float = 1e-3,
    method: str = "ridge",
    seed: int = 0,
) -> Network:
    """Returns the network with a linear classifier fitted on one of its values.

    The value is flattened to d features per sample and centred and scaled as a whole, which the
    layer's weights then undo. "ridge" solves least squares on one-hot labels in closed form;
    "softmax" minimises the cross-entropy by L-BFGS from small seeded weights. Both are in float64.

    Args:
        network: The network.
        value: Name of the value.
        inputs: Batch in model-input space, [n, *sample shape].
        labels: Int64 [n], 0 to classes - 1.
        l2: Weight of the squared norm of the layer's weights, per sample; above 0.
        method: "ridge" or "softmax".
        seed: Seed of the first weights.

    Returns:
        A network whose `output` is the head's class scores [n, classes]; its `original` is the
        model to open a session on, with the fit recorded in its metadata under `RECORD`.

    Raises:
        InvalidModel: There is no such value of floating type.
        ProbesDoNotFit: Fewer than two classes, or labels that do not count from 0.
        ValueError: `l2` or `method` is out of range.
    """
    if l2 <= 0 or method not in {"ridge", "softmax"}:
        raise ValueError(
            f"l2 is {l2} and method {method!r}; expected above 0, 'ridge' or 'softmax'"
        )
    classes = int(labels.max()) + 1
    if classes < _LEAST_CLASSES or int(labels.min()) < 0 or len(labels) != len(inputs):
        raise ProbesDoNotFit(
            f"{len(labels)} labels from {int(labels.min())} to {classes - 1} for {len(inputs)} "
            "inputs; expected one for each, of at least two classes, counting from 0"
        )
    features = _features(network, value, inputs)
    targets = torch.nn.functional.one_hot(labels.cpu(), classes).double()
    mean, scale = features.mean(0), features.std().clamp_min(1e-12)
    centred = (features - mean) / scale
    solve = _ridge if method == "ridge" else _softmax
    weight, bias = solve(centred, targets, l2, seed)
    weight = weight / scale
    bias = bias - mean @ weight
    accuracy = float(((features @ weight + bias).argmax(1) == labels.cpu()).double().mean())
    record = {"value": value, "method": method, "l2": l2, "seed": seed, "samples": len(labels),
              "classes": classes, "features": features.shape[1],
              "training_accuracy": accuracy}  # fmt: skip
    sample = list(inputs.shape[1:])
    proto = _with_head(network.original, value, weight.numpy(), bias.numpy(), record)
    opened = any(size < 1 for size in network.input.shape[1:])
    return load(proto, network.device, output=OUTPUT, sample_shape=sample if opened else None)


def _features(network: Network, value: str, inputs: Tensor) -> Tensor:
    if value not in network.value_names():
        raise InvalidModel(f"the model has no value '{value}'")
    with torch.no_grad():
        parts = [
            network.values(block, [value])[value].reshape(len(block), -1)
            for block in torch.split(inputs.to(network.device), _BATCH)
        ]
    if not parts[0].is_floating_point():
        raise InvalidModel(f"value '{value}' is of {parts[0].dtype}; expected {sorted(FLOATS)}")
    return torch.cat(parts).cpu().double()


def _ridge(x: Tensor, targets: Tensor, l2: float, _: int) -> tuple[Tensor, Tensor]:
    """Returns argmin |x w + b - targets|^2 + n l2 |w|^2, in the smaller of its two forms."""
    bias = targets.mean(0)
    rows, width = x.shape
    if width <= rows:
        gram = x.T @ x + rows * l2 * torch.eye(width, dtype=x.dtype)
        return torch.linalg.solve(gram, x.T @ (targets - bias)), bias
    gram = x @ x.T + rows * l2 * torch.eye(rows, dtype=x.dtype)
    return x.T @ torch.linalg.solve(gram, targets - bias), bias


def _softmax(x: Tensor, targets: Tensor, l2: float, seed: int) -> tuple[Tensor, Tensor]:
    """Returns argmin of the mean cross-entropy + l2 / 2 |w|^2."""
    generator = np.random.Generator(np.random.Philox(seed))
    shape = (x.shape[1], targets.shape[1])
    weight = torch.from_numpy(_SPREAD * generator.standard_normal(shape)).requires_grad_()
    bias = torch.zeros(shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=_ITERATIONS, tolerance_grad=1e-9, tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def loss() -> Tensor:
        optimizer.zero_grad()
        entropy = -(targets * torch.log_softmax(x @ weight + bias, 1)).sum(1).mean()
        total = entropy + l2 / 2 * weight.square().sum()
        total.backward()  # type: ignore[no-untyped-call] # torch leaves it untyped
        return total

    optimizer.step(loss)  # type: ignore[no-untyped-call] # torch leaves it untyped
    return weight.detach(), bias.detach()


def _with_head(
    proto: onnx.ModelProto,
    value: str,
    weight: npt.NDArray[np.float64],
    bias: npt.NDArray[np.float64],
    record: dict[str, object],
) -> onnx.ModelProto:
    """Returns the model with the head as its only output."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    graph = copy.graph
    for name, tensor in (("weight", weight), ("bias", bias)):
        stored = numpy_helper.from_array(tensor.astype(np.float32), f"{OUTPUT}/{name}")
        graph.initializer.append(stored)
    single = f"{OUTPUT}/single"
    graph.node.extend([
        helper.make_node("Cast", [value], [single], name=single, to=TensorProto.FLOAT),
        helper.make_node("Flatten", [single], [f"{OUTPUT}/flat"], name=f"{OUTPUT}/flat", axis=1),
        helper.make_node("Gemm", [f"{OUTPUT}/flat", f"{OUTPUT}/weight", f"{OUTPUT}/bias"], [OUTPUT],
                         name=OUTPUT),
    ])  # fmt: skip
    del graph.output[:]
    first = graph.input[0].type.tensor_type.shape.dim[0]
    rows: int | str = first.dim_value if first.HasField("dim_value") else "n"
    graph.output.append(helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, [rows, len(bias)]))
    copy.metadata_props.add(key=RECORD, value=json.dumps(record, sort_keys=True))
    return copy
