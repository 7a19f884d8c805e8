"""Bounds of networks and certified radii against searches, and against brute force on tiny ones."""

from __future__ import annotations

import itertools
import math
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from onnx import helper
from scipy.optimize import linprog, minimize
from tests.auditors.lipschitz.nets import CLASSES, KINDS, Builder
from tests.auditors.lipschitz.searching import attack, inside, jacobian_norms, points
from tests.support import graph_model, shared_data

from onnx_audit import v1
from onnx_auditors import distortion
from onnx_auditors.lipschitz import (
    certificates,
    certified_radii,
    compose_bounds,
    graph_of,
    layer_bounds,
    local_bounds,
    network_bounds,
    pieces,
)
from onnx_auditors.network import load

Norm = Literal["l1", "l2", "linf"]
NORMS: tuple[Norm, ...] = ("l2", "linf", "l1")
BALLS: tuple[Literal["l2", "linf"], ...] = ("l2", "linf")
_ORDER = {"l1": 1.0, "l2": 2.0, "linf": math.inf}
Doubles = npt.NDArray[np.float64]


@pytest.mark.parametrize("kind", KINDS)
def test_no_searched_amplification_exceeds_a_bound(kind: str) -> None:
    """Dense Jacobians at points inside and outside the box stay below every global bound."""
    network = load(KINDS[kind](1))
    starts = torch.cat([points(network, 4), 4 * points(network, 4, 1) - 2])
    graph = graph_of(network)
    assert not graph.problems
    layers = [layer_bounds(graph, p, NORMS, delta=1e-12, entropy=1)[0] for p in pieces(graph)]
    for norm in NORMS:
        composed = compose_bounds(graph, layers, norm, delta=1e-12, entropy=1)
        largest, apart = jacobian_norms(network, starts, norm)
        assert largest <= min(composed.product, composed.recursion)
        assert bool((apart <= composed.pairs * (1 + 1e-9)).all())
    for layer in layers:
        for bound in layer.bounds:
            assert 0 <= bound.lower <= bound.upper < math.inf


@pytest.mark.parametrize("kind", ["Relu", "residual", "overlapping pool", "layer norm"])
def test_section_of_a_network(kind: str) -> None:
    """The lower end is near the largest Jacobian seen; shares, ranking and words are filled in."""
    network = load(KINDS[kind](1))
    starts = points(network, 4)
    section = network_bounds(network, NORMS, entropy=1, probes=starts)
    assert [b.norm for b in section.layers[0].bounds] == [b.bound.norm for b in section.network]
    assert math.isclose(sum(layer.log_share for layer in section.layers), 1)
    shares = [section.layers[i].log_share for i in section.dominant]
    assert shares == sorted(shares, reverse=True)
    for norm, found in zip(NORMS, section.network, strict=True):
        largest, _ = jacobian_norms(network, starts, norm)
        assert 0.8 * largest <= found.bound.lower <= found.bound.upper
        assert found.bound.upper == min(found.product, found.recursion)
        assert found.witness_probe in range(4)
        assert found.meaning
    again = network_bounds(network, NORMS, entropy=1, probes=starts)
    assert again == section


@pytest.mark.parametrize("kind", KINDS)
def test_graph_computes_what_the_file_computes(kind: str) -> None:
    """The values that are bounded are those of ONNX Runtime up to float32."""
    model = KINDS[kind](2)
    network = load(model)
    x = points(network, 5)
    expected = np.concatenate([_run(model, p[None].numpy().astype(np.float32)) for p in x])
    found = graph_of(network).logits(x).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def _run(model: onnx.ModelProto, x: npt.NDArray[np.float32]) -> Doubles:
    import onnxruntime  # noqa: PLC0415 - only this check needs it

    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return np.asarray(session.run(None, {"x": x})[0], dtype=np.float64).reshape(1, -1)


@pytest.mark.parametrize(("kind", "norm"), [(kind, BALLS[i % 2]) for i, kind in enumerate(KINDS)])
def test_attacks_find_nothing_within_a_radius(kind: str, norm: Literal["l2", "linf"]) -> None:
    """Projected gradient descent inside the certified ball never changes the answer."""
    network = load(KINDS[kind](3))
    x = points(network, 3)
    labels = graph_of(network).logits(x).argmax(1)
    radii = torch.from_numpy(certified_radii(network, x.numpy(), labels.numpy(), norm))
    assert bool((radii > 0).all())
    assert bool((attack(network, x, labels, radii, norm) > 0).all())


def test_radius_is_zero_where_the_model_errs() -> None:
    """A wrong label has no radius."""
    network = load(KINDS["Relu"](3))
    x = points(network, 4)
    labels = graph_of(network).logits(x).argmax(1)
    radii = certified_radii(network, x.numpy(), ((labels + 1) % CLASSES).numpy())
    assert not radii.any()


@pytest.mark.parametrize("norm", BALLS)
@pytest.mark.parametrize(
    "kind", ["Relu", "Gelu", "Sigmoid", "residual", "concat", "overlapping pool"]
)
def test_slopes_in_a_ball_stay_below_the_local_bound(
    kind: str, norm: Literal["l2", "linf"]
) -> None:
    """Gradients of margins at points of the ball have no larger dual norm."""
    network = load(KINDS[kind](4))
    graph = graph_of(network)
    x = points(network, 2)
    labels = graph.logits(x).argmax(1)
    radii = (0.02, 0.5)
    bounds = local_bounds(graph, x.numpy(), labels.numpy(), norm, radii)
    assert bool((np.diff(bounds, axis=1) >= 0).all())
    draws = torch.Generator().manual_seed(0)
    for i, radius in itertools.product(range(len(x)), range(len(radii))):
        moves = torch.randn(10, *x.shape[1:], generator=draws, dtype=torch.float64)
        size = torch.full((10, *[1] * (x.dim() - 1)), radii[radius], dtype=torch.float64)
        moves = moves.sign() * size if norm == "linf" else moves
        _, apart = jacobian_norms(network, inside(x[i][None], moves, size, norm), norm)
        assert float(apart[labels[i]].max()) <= bounds[i, radius] * (1 + 1e-9)


def _tiny(seed: int) -> tuple[onnx.ModelProto, list[tuple[Doubles, Doubles]]]:
    """A ReLU network of 2 inputs and two layers of 4, with its matrices and biases."""
    b = Builder((1, 2), seed)
    b.dense(2, 4)
    b.op("Relu")
    b.dense(4, 4)
    b.op("Relu")
    b.dense(4, 3)
    b.nodes[-1].output[0] = "y"
    weights = [np.asarray(w, dtype=np.float64) for w in b.weights.values()]
    return graph_model(b.nodes, {"x": (1, 2)}, b.weights), list(
        zip(weights[::2], weights[1::2], strict=True)
    )


def _regions(
    layers: list[tuple[Doubles, Doubles]],
) -> list[tuple[Doubles, Doubles, Doubles, Doubles]]:
    """All linear pieces: map and offset, and the half-planes G x <= h where they hold."""
    found = []
    (w1, b1), (w2, b2), (w3, b3) = layers
    for first in itertools.product([0.0, 1.0], repeat=4):
        on = np.array(first)
        s1 = 1 - 2 * on
        a, c = w2 @ np.diag(on) @ w1, w2 @ (on * b1) + b2
        for second in itertools.product([0.0, 1.0], repeat=4):
            up = np.array(second)
            s2 = 1 - 2 * up
            g = np.concatenate([s1[:, None] * w1, s2[:, None] * a])
            h = -np.concatenate([s1 * b1, s2 * c])
            # Is there a point with room on all sides?
            room = linprog(
                [0, 0, -1],
                np.c_[g, np.linalg.norm(g, axis=1)],
                h,
                bounds=[(-50, 50), (-50, 50), (None, 1)],
            )
            if room.status == 0 and room.x[2] > 1e-9:
                found.append((w3 @ np.diag(up) @ a, w3 @ (up * c) + b3, g, h))
    return found


@pytest.mark.parametrize("seed", range(4))
def test_enumerated_pieces_of_tiny_networks(seed: int) -> None:
    """The exact constant over all linear pieces is below the bound."""
    model, layers = _tiny(seed)
    pieces_of_it = _regions(layers)
    section = network_bounds(load(model), NORMS, entropy=0)
    for norm, found in zip(NORMS, section.network, strict=True):
        exact = max(np.linalg.norm(a, _ORDER[norm]) for a, *_ in pieces_of_it)
        assert exact <= found.bound.upper <= found.product


@pytest.mark.parametrize("seed", range(2))
def test_exact_radii_of_tiny_networks(seed: int) -> None:
    """Distances to the nearest other answer, by a linear or quadratic program on each piece."""
    model, layers = _tiny(seed)
    found = _regions(layers)
    network = load(model)
    x = np.random.default_rng(seed).uniform(0, 1, (3, 2))
    labels = graph_of(network).logits(torch.from_numpy(x)).argmax(1).numpy()
    for norm in BALLS:
        radii = certificates(graph_of(network), x, labels, norm, (0.0, 1.0)).radius
        for probe, label, radius in zip(x, labels, radii, strict=True):
            exact = min(
                _distance(probe, piece, int(label), other, norm)
                for piece in found
                for other in range(3)
                if other != label
            )
            assert 0 < radius <= exact * (1 + 1e-7)
            assert radius >= 0.5 * min(exact, 0.2)


def _distance(
    probe: Doubles, piece: tuple[Doubles, Doubles, Doubles, Doubles], label: int, other: int,
    norm: str,
) -> float:  # fmt: skip
    a, c, g, h = piece
    rows = np.concatenate([g, (a[label] - a[other])[None]])
    limits = np.concatenate([h, [c[other] - c[label]]])
    square = [[1, 0, -1], [-1, 0, -1], [0, 1, -1], [0, -1, -1]]
    ends = [probe[0], -probe[0], probe[1], -probe[1]]
    nearest = linprog(
        [0, 0, 1],
        np.concatenate([np.c_[rows, np.zeros(len(rows))], square]),
        np.concatenate([limits, ends]),
        bounds=[(0, 1), (0, 1), (0, None)],
    )
    if nearest.status != 0:
        return math.inf
    if norm == "linf":
        return float(nearest.fun)
    best = minimize(
        lambda p: ((p - probe) ** 2).sum(), nearest.x[:2], jac=lambda p: 2 * (p - probe),
        bounds=[(0, 1), (0, 1)], method="SLSQP", options={"ftol": 1e-14},
        constraints={"type": "ineq", "fun": lambda p: limits - rows @ p, "jac": lambda _: -rows},
    )  # fmt: skip
    return float(np.sqrt(best.fun))


TRAPS: dict[str, tuple[list[tuple[str, list[str], dict[str, Any]]], str]] = {
    "gated by other entries": (
        [("Softmax", ["x"], {}), ("Mul", ["x", "v0"], {})], "Mul of two values",
    ),
    "raw attention": (
        [("Transpose", ["x"], {"perm": [0, 2, 1]}), ("MatMul", ["x", "v0"], {}),
         ("Softmax", ["v1"], {}), ("MatMul", ["v2", "x"], {})], "MatMul of two values",
    ),
    "division": ([("Sigmoid", ["x"], {}), ("Div", ["x", "v0"], {})], "divides by"),
    "a constant divided": ([("Div", ["one", "x"], {})], "divides by"),
    "quantised": (
        [("QuantizeLinear", ["x", "one"], {}), ("DequantizeLinear", ["v0", "one"], {})], "jump",
    ),
    "sign": ([("Sign", ["x"], {})], "jump"),
    "exponential": ([("Exp", ["x"], {})], "no bound"),
}  # fmt: skip


JUMPING = {"quantised", "sign"}
"""Those without a bound in a ball either."""


@pytest.mark.parametrize("trap", TRAPS)
def test_what_has_no_constant_is_named(trap: str) -> None:
    """Values that are not Lipschitz make the global bound infinite, with the reason."""
    steps, reason = TRAPS[trap]
    nodes = [helper.make_node(op, read, [f"v{i}"], **a) for i, (op, read, a) in enumerate(steps)]
    nodes += [
        helper.make_node("Flatten", [f"v{len(steps) - 1}"], ["f"]),
        helper.make_node("Gemm", ["f", "w"], ["y"]),
    ]
    draws = np.random.default_rng(0)
    weights = {
        "w": draws.standard_normal((12, 3)).astype(np.float32),
        "one": np.array(1, np.float32),
    }
    network = load(graph_model(nodes, {"x": (1, 3, 4)}, weights))
    section = network_bounds(network, ("l2",), entropy=0)
    assert len(section.unbounded) >= 1
    assert reason in " ".join(section.unbounded)
    op = next(op for op, *_ in reversed(steps) if op != "DequantizeLinear")
    assert op in " ".join(section.unbounded)
    assert math.isinf(section.network[0].bound.upper)
    assert any(layer.kind == v1.LIPSCHITZ_LAYER_KIND_UNBOUNDED for layer in section.layers)
    x = points(network, 2)
    labels = graph_of(network).logits(x).argmax(1) if trap not in JUMPING else torch.zeros(2).long()
    radii = certified_radii(network, x.numpy(), labels.numpy())
    assert radii.any() != (trap in JUMPING)
    if trap not in JUMPING:
        assert bool((attack(network, x, labels, torch.from_numpy(radii), "l2") > 0).all())


@pytest.mark.parametrize("name", ["mnist-net_256x2", "cifar_base_kw"])
def test_no_radius_reaches_a_known_counterexample(name: str) -> None:
    """Where the verification competition knows a misclassified point, the radius is smaller."""
    folder = shared_data()
    with np.load(folder / "verified_linf.npz", allow_pickle=False) as facts:
        wrong = ~facts[f"{name}/robust"] & (facts[f"{name}/targets"] < 0)
        rows = np.flatnonzero(wrong)[:4]
        images, labels = facts[f"{name}/images"][rows] / 255.0, facts[f"{name}/labels"][rows]
        sizes = facts[f"{name}/eps"][rows]
    assert len(rows)
    network = load(folder / "models" / f"{name}.onnx")
    if name.startswith("mnist"):
        radii = certified_radii(network, images.reshape(-1, 784, 1), labels, "linf")
    else:
        mean = torch.tensor([0.485, 0.456, 0.406], dtype=torch.float64).reshape(3, 1, 1)
        radii = certified_radii(
            network, images.transpose(0, 3, 1, 2), labels, "linf",
            to_input=lambda p: (p - mean) / 0.225,
        )  # fmt: skip
    assert bool((radii > 0).all())
    assert bool((radii < sizes).all())


@pytest.mark.parametrize("norm", BALLS)
def test_no_radius_reaches_what_the_distortion_search_finds(norm: Literal["l2", "linf"]) -> None:
    """On a real network each radius is below the smallest distance that is found."""
    folder = shared_data()
    with np.load(folder / "mnist_test_1000.npz", allow_pickle=False) as data:
        x, labels = data["images"][::200].reshape(-1, 784, 1) / 255.0, data["labels"][::200]
    network = load(folder / "models" / "mnist-net_256x2.onnx")
    radii = certified_radii(network, x, labels.astype(np.int64), norm)
    found = distortion.minimal(
        network, torch.from_numpy(x).float(), torch.from_numpy(labels.astype(np.int64)), norm, 200
    )
    assert bool((radii <= found.distance.numpy()).all())
    assert bool((radii > 0).sum() >= len(x) - 1)
