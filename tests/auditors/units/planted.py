"""Images with planted concepts, networks with a unit for each, and twins of the same function."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper
from scipy.stats import special_ortho_group
from tests.support import graph_model

from onnx_audit import v1
from onnx_auditors.network import Network, load

Floats = npt.NDArray[np.float64]
SIDE, PATCH, CONCEPTS, SHOWN = 18, 6, 48, 6


@dataclass(frozen=True)
class World:
    """Images [n, 3, 18, 18] in [0, 1] that each show 6 of 48 patches, one of them strongest.

    Attributes:
        images: Float32.
        labels: The strongest patch, [n].
        concepts: Which patches an image shows, bool [n, 48].
        templates: The patches in an image of zeros, [48, 3 * 18 * 18].
    """

    images: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    concepts: npt.NDArray[np.bool_]
    templates: Floats


def world(count: int, seed: int = 0, noise: float = 0.02) -> World:
    """Draws images: gratings of some orientation, frequency, colour and place on noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:PATCH, :PATCH] / PATCH
    templates = np.zeros((CONCEPTS, 3, SIDE, SIDE))
    colours = np.array([[1, -0.3, -0.7], [-0.5, 1, -0.5], [-0.7, -0.3, 1], [1, 1, 1]])
    for c in range(CONCEPTS):
        angle, frequency = np.pi * (c % 4) / 4, (1.2, 2.2, 3.0)[c // 4 % 3]
        wave = np.cos(2 * np.pi * frequency * (x * np.cos(angle) + y * np.sin(angle)))
        top, left = (0, 6, 12)[c % 3], (0, 6, 12)[(c // 3 + c // 12) % 3]
        patch = colours[c // 12][:, None, None] * wave
        templates[c, :, top : top + PATCH, left : left + PATCH] = patch
    chosen = rng.permuted(np.tile(np.arange(CONCEPTS), (count, 1)), axis=1)[:, :SHOWN]
    strength = np.zeros((count, CONCEPTS))
    np.put_along_axis(strength, chosen, rng.uniform(0.05, 0.12, chosen.shape), 1)
    np.put_along_axis(strength, chosen[:, :1], rng.uniform(0.14, 0.22, (count, 1)), 1)
    flat = templates.reshape(CONCEPTS, -1)
    images = 0.5 + (strength @ flat).reshape(count, 3, SIDE, SIDE)
    images += noise * rng.standard_normal(images.shape)
    return World(images.clip(0, 1).astype(np.float32), chosen[:, 0], strength > 0, flat)


def rotation(size: int, seed: int, power: float = 1.0) -> Floats:
    """A Haar rotation, or a power of it: its angles times that."""
    q = special_ortho_group.rvs(size, random_state=seed)
    values, vectors = np.linalg.eig(q)
    turned = vectors @ np.diag(np.exp(1j * power * np.angle(values))) @ np.linalg.inv(vectors)
    return np.asarray(turned.real)


def network(
    planted: World, mix: Floats | None = None, shift: Floats | float = 30.0, seed: int = 0
) -> onnx.ModelProto:
    """A network x -> fc0 -> relu -> fc1 -> relu "fc1_relu" -> logits with two units per concept.

    fc0 measures how strong a patch is, and its rectifier leaves what is stronger than a threshold;
    fc1 passes that on through the matrix `mix`, with a shift that keeps its rectifier open; the
    head undoes both, so that every `mix` gives the same function.

    Args:
        planted: The images.
        mix: Invertible, [96, 96]; the identity by default.
        shift: Added to fc1; large enough that no unit is ever below 0.
        seed: Of the units' sensitivities.
    """
    rng = np.random.default_rng(seed)
    units = 2 * CONCEPTS
    # The dual basis: patches that lie over each other do not disturb each other's detectors.
    detectors = np.repeat(np.linalg.pinv(planted.templates).T, 2, 0)
    gain = rng.uniform(0.8, 1.25, (units, 1))
    w0 = gain * 20 * detectors
    b0 = -(w0 * 0.5).sum(1) - 0.6 * gain[:, 0]
    mix = np.eye(units) if mix is None else mix
    offset = np.broadcast_to(np.asarray(shift, dtype=np.float64), (units,))
    undo = np.linalg.inv(mix)
    head = np.repeat(np.eye(CONCEPTS), 2, 1) / (2 * gain.T)
    weights = {
        "w0": w0, "b0": b0, "w1": mix, "b1": offset,
        "w2": head @ undo, "b2": -(head @ undo @ offset),
    }  # fmt: skip
    gemm = [
        helper.make_node("Gemm", [x, f"w{i}", f"b{i}"], [y], y, transB=1)
        for i, (x, y) in enumerate([("flat", "fc0"), ("fc0_relu", "fc1"), ("fc1_relu", "logits")])
    ]
    relu = [helper.make_node("Relu", [f"fc{i}"], [f"fc{i}_relu"]) for i in (0, 1)]
    flat = helper.make_node("Flatten", ["x"], ["flat"])
    nodes = [flat, gemm[0], relu[0], gemm[1], relu[1], gemm[2]]
    single = {name: w.astype(np.float32) for name, w in weights.items()}
    return graph_model(nodes, {"x": ["n", 3, SIDE, SIDE]}, single, outputs=["logits"])


def opened(model: onnx.ModelProto) -> Network:
    """The network of a model."""
    return load(model)


def convolution(planted: World, mix: Floats | None = None) -> onnx.ModelProto:
    """A network x -> "map" -> logits whose convolution sees the patches, 3 x 3 places of them."""
    mix = np.eye(CONCEPTS) if mix is None else mix
    kernels = np.zeros((CONCEPTS, 3, PATCH, PATCH))
    for c, template in enumerate(planted.templates.reshape(CONCEPTS, 3, SIDE, SIDE)):
        (top,), (left,) = (np.unique(i // PATCH * PATCH) for i in np.nonzero(template)[1:])
        kernels[c] = template[:, top : top + PATCH, left : left + PATCH]
    kernels -= kernels.mean((1, 2, 3), keepdims=True)
    kernels = np.einsum("uc,cijk->uijk", mix, kernels).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["map"], strides=[PATCH, PATCH]),
        helper.make_node("GlobalMaxPool", ["map"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["logits"]),
    ]
    return graph_model(nodes, {"x": ["n", 3, SIDE, SIDE]}, {"k": kernels}, outputs=["logits"])


def deep_map() -> onnx.ModelProto:
    """Convolutions with strides, padding and dilation, a pooling and a residual, to "map"."""
    rng = np.random.default_rng(0)
    weights = {
        "a": rng.standard_normal((3, 1, 3, 3)), "b": rng.standard_normal((3, 3, 3, 3)),
        "c": rng.standard_normal((2, 3, 2, 2)),
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["h0"], pads=[1, 1, 1, 1]),
        helper.make_node("AveragePool", ["h0"], ["h1"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["h1", "b"], ["h2"], pads=[2, 2, 2, 2], dilations=[2, 2]),
        helper.make_node("Add", ["h1", "h2"], ["h3"]),
        helper.make_node("Conv", ["h3", "c"], ["map"], strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["map"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["logits"]),
    ]
    single = {name: w.astype(np.float32) for name, w in weights.items()}
    return graph_model(nodes, {"x": ["n", 1, 20, 20]}, single, outputs=["logits"])


def gaussian(seed: int, units: int = 96) -> onnx.ModelProto:
    """A network x -> fc0 -> relu -> fc1 -> relu -> logits with Gaussian weights.

    A bias takes the images' mean brightness away, which would leave half of the units dead.
    """
    rng = np.random.default_rng(seed)
    sizes = (3 * SIDE * SIDE, units, units, 10)
    weights = {
        f"w{i}": rng.standard_normal((after, before), dtype=np.float32) * np.sqrt(2 / before)
        for i, (before, after) in enumerate(itertools.pairwise(sizes))
    }
    biases = {f"b{i}": np.zeros(size) for i, size in enumerate(sizes[1:])}
    biases["b0"] = -weights["w0"].sum(1) / 2
    nodes = [helper.make_node("Flatten", ["x"], ["flat"])]
    for i, (x, y) in enumerate([("flat", "fc0"), ("fc0_relu", "fc1"), ("fc1_relu", "logits")]):
        nodes.append(helper.make_node("Gemm", [x, f"w{i}", f"b{i}"], [y], y, transB=1))
        if y != "logits":
            nodes.append(helper.make_node("Relu", [y], [f"{y}_relu"]))
    single = {name: w.astype(np.float32) for name, w in (weights | biases).items()}
    return graph_model(nodes, {"x": ["n", 3, SIDE, SIDE]}, single, outputs=["logits"])


def score(section: v1.UnitsSection, kind: v1.UnitScoreKind.ValueType) -> v1.UnitScore:
    """A score of the only layer."""
    (layer,) = section.layers
    (found,) = (found for found in layer.scores if found.kind == kind)
    return found
