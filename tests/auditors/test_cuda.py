"""Every auditor on a GPU beside itself on the CPU: the same figures, and the same bytes twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests import models
from tests.auditors.network import zoo
from tests.auditors.network.exports import exported
from tests.auditors.network.test_exports import check
from tests.auditors.units import planted
from tests.auditors.whole import audit
from tests.support import node_model, save_probes

from onnx_audit import v1
from onnx_auditors import distortion
from onnx_auditors.context import Context, fix_numerics, open_context
from onnx_auditors.distortion import noise
from onnx_auditors.network import load

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
CUDA = "cuda:0"
BOX = v1.InputSpec(lower=[0.0], upper=[1.0])
NORMS = ("l2", "linf", "l1", "l0")


@pytest.fixture(autouse=True)
def _numerics() -> None:
    """Products in full float32, which torch's convolutions on a GPU are not by default."""
    fix_numerics(1)


def opened(folder: Path, device: str, *, peers: dict[str, Path] | None = None) -> Context:
    """Images with planted concepts, and a rectified convolution that sees them."""
    world = planted.world(600)
    path = models.save(planted.convolution(world), folder / "m.onnx")
    probes = save_probes(folder / "p", world.images, world.labels)
    return open_context(path, probes, BOX, seed=3, device=device, threads=1, peers=peers)


def section(configs: v1.AuditorConfigs, folder: Path, device: str) -> v1.SectionResult:
    """Audits on a device, into a folder of its own."""
    folder.mkdir()
    return audit(configs, opened(folder, device), folder)[1]


def twice_and_on_the_cpu(
    configs: v1.AuditorConfigs, folder: Path
) -> tuple[v1.SectionResult, v1.SectionResult]:
    """Audits twice on the GPU, which must give the same bytes, and once on the CPU."""
    first, second = (section(configs, folder / name, CUDA) for name in ("first", "second"))
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(
        deterministic=True
    )
    return first, section(configs, folder / "cpu", "cpu")


@pytest.mark.parametrize(("dynamo", "fixed"), [(True, 0), (False, 1)])
@pytest.mark.parametrize("name", zoo.ZOO)
def test_networks(name: str, dynamo: bool, fixed: int) -> None:
    """Values of ONNX Runtime on the CPU, gradients of the original module."""
    check(name, exported(name, dynamo=dynamo, fixed=fixed), CUDA)


@pytest.mark.parametrize(
    ("op_type", "shape", "attributes"),
    [
        ("MaxPool", (2, 3, 6, 7, 8), {"kernel_shape": [3, 2, 2], "strides": [2, 1, 2]}),
        ("AveragePool", (2, 3, 6, 7, 8), {"kernel_shape": [3, 2, 2], "strides": [2, 1, 2]}),
        ("GridSample", (2, 3, 6, 7), {"padding_mode": "border"}),
        ("ScatterElements", (2, 9), {"axis": 1, "reduction": "mul"}),
    ],
)
def test_operators_without_a_repeatable_kernel(
    op_type: str, shape: tuple[int, ...], attributes: dict[str, Any]
) -> None:
    """Values and gradients are those of the CPU."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape).astype(np.float32)
    others = {
        "GridSample": [rng.uniform(-1, 1, (2, 4, 5, 2)).astype(np.float32)],
        "ScatterElements": [np.array([[1, 1, 4], [0, 3, 3]]), np.full((2, 3), 2.5, np.float32)],
    }.get(op_type, [])
    model = node_model(op_type, x, *others, opset=20, **attributes)
    found = []
    for device in ("cpu", CUDA):
        leaf = torch.from_numpy(x).to(device).requires_grad_()
        values = load(model, device).evaluate({"x": leaf})["y"]
        weights = torch.arange(values.numel(), dtype=torch.float32, device=device) % 7
        (gradient,) = torch.autograd.grad((values.flatten() * weights).sum(), leaf)
        found.append((values.detach().cpu(), gradient.cpu()))
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-5)


def test_distortion(tmp_path: Path) -> None:
    """Confirmed examples at the same distances, up to the rounding of a search."""
    settings = v1.DistortionConfig(
        norms=[v1.NORM_L2, v1.NORM_LINF, v1.NORM_L1, v1.NORM_L0], budget=100, max_probes=64,
        methods=[v1.SEARCH_METHOD_PROJECTED],
    )  # fmt: skip
    gpu, cpu = twice_and_on_the_cpu(v1.AuditorConfigs(distortion=settings), tmp_path)
    for ours, theirs in zip(gpu.distortion.norms, cpu.distortion.norms, strict=True):
        there, here = (np.array([p.distance for p in each.probes]) for each in (ours, theirs))
        assert len(there) == 64
        assert np.isfinite(here).mean() > 0.9
        assert (np.isfinite(there) == np.isfinite(here)).all()
        found = np.isfinite(here) & (here > 0)
        assert np.median(there[found] / here[found]) == pytest.approx(1, abs=1e-3)
        assert np.mean(there[found] / here[found]) == pytest.approx(1, abs=0.02)


def test_lipschitz(tmp_path: Path) -> None:
    """Bounds hold on either device, so each upper one is above the other's lower one."""
    settings = v1.LipschitzConfig(radii=[0.01], max_probes=8)
    gpu, cpu = twice_and_on_the_cpu(v1.AuditorConfigs(lipschitz=settings), tmp_path)
    pairs = list(zip(gpu.lipschitz.certificates, cpu.lipschitz.certificates, strict=True))
    assert pairs
    for there, here in pairs:
        for ours, theirs in zip(there.probes, here.probes, strict=True):
            assert ours.radius == pytest.approx(theirs.radius, rel=0.01)
    assert gpu.lipschitz.layers
    for ours_, theirs_ in zip(gpu.lipschitz.layers, cpu.lipschitz.layers, strict=True):
        for one, other in zip(ours_.bounds, theirs_.bounds, strict=True):
            assert one.lower <= other.upper
            assert other.lower <= one.upper


def test_units(tmp_path: Path) -> None:
    """The same indices and verdicts."""
    settings = v1.UnitsConfig(directions=128, rotations=19, bases=[v1.UNIT_BASIS_PCA])
    gpu, cpu = twice_and_on_the_cpu(v1.AuditorConfigs(units=settings), tmp_path)
    for there, here in zip(gpu.units.layers, cpu.units.layers, strict=True):
        for ours, theirs in zip(there.scores, here.scores, strict=True):
            assert ours.verdict == theirs.verdict
            assert ours.index_auc.value == pytest.approx(theirs.index_auc.value, abs=0.01)


def test_noise_is_the_same_on_every_device() -> None:
    """The bits come from integers; logarithm and sine may differ in the last place."""
    seeds = torch.arange(50)
    there = noise.uniform(seeds.to(CUDA), 3, 1001).cpu()
    assert torch.equal(there, noise.uniform(seeds, 3, 1001))
    near = noise.gaussian(seeds.to(CUDA), 3, 1001).cpu()
    assert torch.allclose(near, noise.gaussian(seeds, 3, 1001), atol=1e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_many_at_once(norm: str, tmp_path: Path) -> None:
    """A batch of thousands finds what small batches find, each row by its own seed."""
    path = models.save(models.mlp((16, 24, 4)), tmp_path / "m.onnx")
    network = load(path, CUDA)
    x = torch.from_numpy(models.probes(3000, 16)).to(CUDA)
    with torch.no_grad():
        labels = network(x).argmax(1)
    whole = distortion.minimal(network, x, labels, norm=norm, budget=60)
    part = distortion.minimal(
        network, x[:50], labels[:50], norm=norm, budget=60, seed=list(range(50))
    )
    with torch.no_grad():
        scores = network(whole.examples)
    own = scores.gather(1, labels[:, None])[:, 0]
    margin = own - scores.scatter(1, labels[:, None], -torch.inf).amax(1)
    # Sums of other batches round otherwise.
    assert (margin[whole.distance.isfinite()] < 1e-5).all()
    ratio = whole.distance[:50] / part.distance
    assert float(ratio[ratio.isfinite()].median()) == pytest.approx(1, abs=1e-3)
