"""Exports in half precision and in 8 bits beside ONNX Runtime and rounded torch modules."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from tests.auditors.network import zoo
from tests.auditors.network.exports import export, exported, half, quantize
from tests.auditors.network.test_exports import ROWS, cosine, inputs, without_squash
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from onnx_auditors.network import Session, load, parity, require
from onnx_auditors.network.saturation import unsigned
from onnx_auditors.network.session import saturates

FLOORS = {
    "mlp": 0.96, "alexnet": 0.96, "vgg": 0.92, "resnet": 0.97, "mobilenet": 0.83, "densenet": 0.94,
    "vit": 0.98, "convnext": 0.97, "autoencoder": 0.99, "quocnet": 0.99,
}  # fmt: skip
"""What the cosine of an 8-bit network's input gradients to the float module's was found to be."""
TYPES = [("QUInt8", "QInt8"), ("QInt8", "QInt8"), ("QUInt8", "QUInt8")]
FEW = [
    ("alexnet", "QDQ", True, TYPES[1]), ("resnet", "QOperator", False, TYPES[2]),
    ("mobilenet", "QOperator", True, TYPES[0]), ("densenet", "QDQ", False, TYPES[1]),
    ("convnext", "QOperator", False, TYPES[0]), ("autoencoder", "QDQ", False, TYPES[2]),
    ("quocnet", "QDQ", True, TYPES[0]), ("vit", "QDQ", True, TYPES[0]),
    ("mlp", "QOperator", False, TYPES[1]), ("vgg", "QDQ", False, TYPES[0]),
    ("resnet", "QDQ", False, ("QUInt16", "QInt8")),
]  # fmt: skip
"""Name, form, whether every channel has its scale, types: each network and each way once."""
WAYS = [(False, 1, 13), (False, 0, 17), (True, 1, 18), (True, 0, 23)]
MATRIX = [
    # torch exports the attention of a ViT from opset 14 on.
    (name, dynamo, fixed, max(opset, 14) if name == "vit" else opset)
    for name in zoo.ZOO
    for dynamo, fixed, opset in WAYS
]
"""Name, exporter, fixed batch (0: open) and opset."""
QUANTIZED = [
    (*way, form, per_channel, types)
    for way, form, per_channel, types in itertools.product(
        MATRIX, ("QDQ", "QOperator"), (False, True), TYPES
    )
    # Here the quantiser of ONNX Runtime writes a QuantizeLinear of two types, which is invalid.
    if (way[0], way[3], form, types) != ("vit", 23, "QOperator", TYPES[1])
]
"""A way, form, whether every channel has its scale, types."""


def folded(module: nn.Module) -> nn.Module:
    """Puts batch normalisation into the convolutions before it, as the exporters do."""
    for part in [p for p in module.modules() if isinstance(p, nn.Sequential)]:
        for i, (first, second) in enumerate(itertools.pairwise(list(part))):
            if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
                part[i], part[i + 1] = fuse_conv_bn_eval(first, second), nn.Identity()
    return module


def check_half(name: str, *, dynamo: bool, fixed: int, opset: int | None = None) -> None:
    """Checks values and gradients of a half-precision export.

    The gradients are those of the original module with its weights rounded to half precision, after
    batch normalisation went into them as the exporters do it, and with float32 values.
    """
    content = half(exported(name, dynamo=dynamo, fixed=fixed, opset=opset))
    network, x = load(content), inputs(name).half().float()
    assert network.half_precision
    result = parity(network, Session(content, output=network.output), x.numpy())
    require(result)
    assert result.tolerance < 4e-3
    rounded = folded(without_squash(name)).half().float()
    scores = network(x)
    assert scores.dtype == torch.float32
    weights = torch.randn(scores.shape[1], generator=torch.Generator().manual_seed(2))
    assert cosine(network, lambda x: zoo.classify(rounded, x), x, weights) >= 0.99999


@pytest.mark.parametrize("name", ["alexnet", "resnet", "convnext", "vit"])
def test_half_precision(name: str) -> None:
    """A half-precision model has parity at its own rounding, and its rounded module's gradients."""
    check_half(name, dynamo=False, fixed=1)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "dynamo", "fixed", "opset"), MATRIX)
def test_half_precision_matrix(name: str, dynamo: bool, fixed: int, opset: int) -> None:
    """So it has for every network, exporter and batch."""
    check_half(name, dynamo=dynamo, fixed=fixed, opset=opset)


def check_quantized(name: str, single: bytes, form: str, **how: object) -> None:
    """Checks an 8-bit form of an export.

    ONNX Runtime rewrites quantised graphs into integer arithmetic, which moves its own answer by
    steps. So the bar is one step from the graph as it stands, and from the rewritten one what its
    own two answers are apart if that is more. Differences are whole steps, but for float32.
    """
    x = inputs(name, 16)
    content = quantize(single, x.numpy(), form, **how)  # type: ignore[arg-type]
    network = load(content)
    assert network.surrogate
    session = Session(content, output=network.output)
    result = parity(network, session, x.numpy())
    require(result)
    assert result.tolerance < 0.2
    exact = unsigned(network.original) if saturates() else network.original
    plain = Session(exact.SerializeToString(), output=network.output, optimized=False)
    as_it_stands = plain.run(x.numpy())
    with torch.no_grad():
        found = network.evaluate({network.input.name: x})[network.output].reshape(len(x), -1)
    step = output_step(content)
    assert np.abs(found.numpy() - as_it_stands).max() <= 1.01 * step
    own = float(np.abs(session.run(x.numpy()) - as_it_stands).max())
    assert result.max_absolute_difference <= 1.01 * max(step, own)
    module = without_squash(name)
    weights = torch.randn(network(x).shape[1], generator=torch.Generator().manual_seed(2))
    assert cosine(network, lambda x: zoo.classify(module, x), x, weights) > FLOORS[name]


def output_step(content: bytes) -> float:
    """Returns the scale of the last operator that leaves 8 bits."""
    graph = onnx.load_from_string(content).graph
    node = next(n for n in reversed(graph.node) if n.op_type == "DequantizeLinear")
    stored = {t.name: t for t in graph.initializer}
    return float(numpy_helper.to_array(stored[node.input[1]]))


@pytest.mark.parametrize(("name", "form", "per_channel", "types"), FEW)
def test_quantized(name: str, form: str, per_channel: bool, types: tuple[str, str]) -> None:
    """An 8-bit model is right to a step of its output, with gradients near the original's."""
    single = exported(name, dynamo=False, fixed=1)
    check_quantized(name, single, form, per_channel=per_channel, types=types)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dynamo", "fixed", "opset", "form", "per_channel", "types"), QUANTIZED
)
def test_quantized_matrix(
    name: str, dynamo: bool, fixed: int, opset: int, form: str, per_channel: bool,
    types: tuple[str, str],
) -> None:  # fmt: skip
    """So it is for every network, exporter, batch, form and type."""
    single = exported(name, dynamo=dynamo, fixed=fixed, opset=opset)
    check_quantized(name, single, form, per_channel=per_channel, types=types)


def small_mlp() -> nn.Sequential:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 10),
    )  # fmt: skip


def small_cnn() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, 2),
        nn.LeakyReLU(), nn.Conv2d(8, 8, 1, groups=2), nn.Flatten(), nn.Linear(72, 10),
    )  # fmt: skip


SMALL: dict[str, tuple[Callable[[], nn.Sequential], zoo.Shape]] = {
    "mlp": (small_mlp, (4, 6)),
    "cnn": (small_cnn, (3, 16, 16)),
}
"""Modules of which each part becomes one ONNX operator, with the shapes of their samples."""


@dataclass(frozen=True)
class FakeQuantized:
    """A sequence of modules that rounds weights, biases and values as a quantised file says.

    Attributes:
        parts: The modules, in float32.
        names: Names of the values that they give, in the float file.
        merged: Indices of the ReLUs that the file leaves to the rounding before, which clips at 0.
        stored: Tensors of the quantised file by name.
    """

    parts: nn.Sequential
    names: list[str]
    merged: set[int]
    stored: dict[str, np.ndarray]

    @classmethod
    def read(cls, parts: nn.Sequential, single: bytes, content: bytes) -> FakeQuantized:
        """Reads names from the float file, and how it is rounded from the quantised one."""
        names = [node.output[0] for node in onnx.load_from_string(single).graph.node]
        graph = onnx.load_from_string(content).graph
        stored = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        ends = [f"{names[i - 1]}_zero_point" for i in range(len(names))]
        merged = {
            i for i, end in enumerate(ends)
            if end in stored and stored[end] == np.iinfo(stored[end].dtype).min
        }  # fmt: skip
        return cls(parts, names, merged, stored)

    def __call__(self, x: Tensor) -> Tensor:
        """Returns class scores."""
        x, scale = self.rounded("x", x, torch.ones(()))
        for index, (part, name) in enumerate(zip(self.parts, self.names, strict=True)):
            if isinstance(part, nn.Linear | nn.Conv2d):
                x = torch.func.functional_call(part, self.parameters(index, scale), x)
            elif not isinstance(part, nn.ReLU) or index not in self.merged:
                x = part(x)
            x, scale = self.rounded(name, x, scale)
        return x

    def rounded(self, name: str, x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Rounds a value that the file rounds; the gradient is that of clipping."""
        if f"{name}_scale" not in self.stored:
            return x, scale
        scale = torch.tensor(self.stored[f"{name}_scale"])
        zero = self.stored[f"{name}_zero_point"]
        limits = np.iinfo(zero.dtype)
        clipped = x.clamp((limits.min - int(zero)) * scale, (limits.max - int(zero)) * scale)
        stepped = torch.fake_quantize_per_tensor_affine(
            x, scale, torch.tensor(int(zero), dtype=torch.int32), limits.min, limits.max
        )
        return clipped + (stepped - clipped).detach(), scale

    def parameters(self, index: int, of_input: Tensor) -> dict[str, Tensor]:
        """Returns weight and bias as stored; a bias in steps of what weights and inputs give."""
        weight, zero, scale, bias = (
            torch.tensor(self.stored[f"{index}.{part}"]).float()
            for part in ("weight_quantized", "weight_zero_point", "weight_scale", "bias_quantized")
        )
        column = (-1,) + (1,) * (weight.dim() - 1)
        centred = weight - zero.reshape(column)
        return {"weight": centred * scale.reshape(column), "bias": bias * of_input * scale}


@pytest.mark.parametrize(
    ("per_channel", "types"), [(False, TYPES[0]), (True, TYPES[1]), (True, TYPES[2])]
)
@pytest.mark.parametrize("form", ["QDQ", "QOperator"])
@pytest.mark.parametrize("name", SMALL)
def test_gradients_of_a_fake_quantised_module(
    name: str, form: str, per_channel: bool, types: tuple[str, str]
) -> None:
    """Values and gradients are those of torch's fake quantisation with clipped gradients."""
    torch.manual_seed(0)
    make, shape = SMALL[name]
    module = make()
    module.eval().requires_grad_(requires_grad=False)
    x = torch.from_numpy(np.random.default_rng(4).random((64, *shape), dtype=np.float32))
    single = export(module, shape, dynamo=False, fixed=1)
    # Calibrated on less than the range, so that values are clipped.
    content = quantize(single, (0.8 * x[:ROWS]).numpy(), form, per_channel=per_channel, types=types)
    network, fake = load(content), FakeQuantized.read(module, single, content)
    difference = (network(x) - fake(x)).abs().max() / output_step(content)
    assert float(difference) <= 1.001
    weights = torch.linspace(-1, 1, 10)
    assert cosine(network, fake, x, weights) >= 0.99999
