"""The spectral penalty against the singular values of the layers written out."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from onnx_auditors import lipschitz


def _singular_values(layer: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """Singular values of the Jacobian in eval mode, falling, differentiable by the weights."""
    layer.eval()
    eye = torch.eye(torch.Size(shape).numel(), dtype=torch.float64).reshape(-1, *shape)
    columns = (layer(eye) - layer(torch.zeros_like(eye))).flatten(1)
    layer.train()
    values: Tensor = torch.linalg.svdvals(columns)
    return values


def _norm_of(layer: nn.Module, shape: tuple[int, ...]) -> Tensor:
    return _singular_values(layer, shape)[0]


def _stirred(module: nn.Module, seed: int = 0) -> nn.Module:
    """In float64, with statistics and factors of batch normalisation that are not 0 and 1."""
    g = torch.Generator().manual_seed(seed)
    module.double()
    for m in module.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            m.momentum = 0.0
            variance = torch.rand(m.num_features, generator=g) + 0.3
            m.load_state_dict({"running_var": variance}, strict=False)
            if m.affine:
                with torch.no_grad():
                    m.weight.copy_(torch.randn(m.num_features, generator=g))
    return module


Case = tuple[Callable[[], nn.Module], tuple[int, ...]]
CASES: dict[str, Case] = {
    "linear": (lambda: nn.Linear(12, 7), (12,)),
    "linear on rows": (lambda: nn.Linear(6, 4), (3, 6)),
    "conv 1d": (lambda: nn.Conv1d(2, 3, 4, stride=3, padding=2), (2, 11)),
    "conv 2d": (lambda: nn.Conv2d(2, 3, 3, padding=1), (2, 6, 5)),
    "stride and uneven pads": (lambda: nn.Conv2d(3, 4, 3, stride=2, padding=(0, 1)), (3, 7, 6)),
    "dilation and groups": (
        lambda: nn.Conv2d(4, 6, 3, padding=2, dilation=2, groups=2), (4, 5, 5),
    ),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, padding=1, groups=4), (4, 5, 5)),
    "conv 3d": (lambda: nn.Conv3d(1, 2, (2, 3, 2), stride=(1, 2, 1)), (1, 3, 5, 3)),
    "same": (lambda: nn.Conv2d(2, 2, (2, 3), padding="same", dilation=(1, 2)), (2, 5, 5)),
    "valid": (lambda: nn.Conv2d(2, 2, 3, padding="valid"), (2, 5, 6)),
    "circular": (
        lambda: nn.Conv2d(2, 3, 3, padding=(1, 2), padding_mode="circular"), (2, 5, 6),
    ),
    "reflect": (lambda: nn.Conv1d(2, 3, 5, padding=2, padding_mode="reflect"), (2, 9)),
    "transposed": (
        lambda: nn.ConvTranspose2d(3, 4, 3, stride=2, padding=1, output_padding=1), (3, 4, 4),
    ),
    "transposed, groups": (
        lambda: nn.ConvTranspose1d(4, 6, 4, stride=2, padding=1, groups=2, dilation=3), (4, 5),
    ),
    "normalised": (
        lambda: nn.Sequential(nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4)),
        (2, 6, 6),
    ),
    "normalised, transposed": (
        lambda: nn.Sequential(nn.ConvTranspose2d(2, 3, 3, stride=2), nn.BatchNorm2d(3)),
        (2, 3, 3),
    ),
    "normalised, linear": (
        lambda: nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6, affine=False)), (5,),
    ),
}  # fmt: skip


def _prepared(name: str, steps: int = 250) -> tuple[nn.Module, lipschitz.SpectralPenalty]:
    make, shape = CASES[name]
    seed, alone = -1, False
    # Axes that a layer leaves alone repeat its values; else the gradient must be unique.
    while not alone:
        seed += 1
        torch.manual_seed(seed)
        module = _stirred(make())
        values = _singular_values(module, shape).tolist()
        alone = name == "linear on rows" or values[1] < 0.97 * values[0]
        assert seed < 100
    spectral = lipschitz.penalty(module, steps=steps)
    module(torch.randn(4, *shape, dtype=torch.float64))
    return module, spectral


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_are_those_of_the_largest_singular_value(name: str) -> None:
    module, spectral = _prepared(name)
    shape, parameters = CASES[name][1], dict(module.named_parameters())
    wanted = _norm_of(module, shape).square()
    value = spectral()
    assert float(value.detach()) == pytest.approx(float(wanted.detach()), rel=1e-9)
    found = torch.autograd.grad(
        value, list(parameters.values()), allow_unused=True, materialize_grads=True
    )
    exact = torch.autograd.grad(wanted, list(parameters.values()), allow_unused=True)
    for (key, parameter), mine, other in zip(parameters.items(), found, exact, strict=True):
        # A bias moves nothing.
        expected = torch.zeros_like(parameter) if other is None else other
        assert torch.allclose(mine, expected, atol=1e-5 * float(expected.abs().max())), key


@pytest.mark.parametrize("name", ["dilation and groups", "transposed", "normalised"])
def test_gradient_is_the_slope_of_the_singular_value(name: str) -> None:
    module, spectral = _prepared(name)
    spectral().backward()  # type: ignore[no-untyped-call] # torch
    g = torch.Generator().manual_seed(5)
    step = 1e-5
    for parameter in module.parameters():
        way = torch.randn(parameter.shape, dtype=torch.float64, generator=g)
        ends = []
        for sign in (1.0, -1.0):
            moved = copy.deepcopy(module)
            twin = dict(moved.named_parameters())
            key = next(k for k, p in module.named_parameters() if p is parameter)
            with torch.no_grad():
                twin[key].add_(way, alpha=sign * step)
            ends.append(float(_norm_of(moved, CASES[name][1]).detach().square()))
        slope = (ends[0] - ends[1]) / (2 * step)
        mine = 0.0 if parameter.grad is None else float((parameter.grad * way).sum())
        assert mine == pytest.approx(slope, rel=1e-5, abs=1e-7)


def test_gradient_of_a_matrix_is_twice_the_norm_times_its_singular_vectors() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(9, 5, bias=False).double()
    values = torch.linalg.svdvals(layer.weight.detach())
    assert values[1] < 0.97 * values[0]
    spectral = lipschitz.penalty(layer, target=0.1, steps=500)
    layer(torch.zeros(1, 9, dtype=torch.float64))
    spectral().backward()  # type: ignore[no-untyped-call] # torch
    u, s, vh = torch.linalg.svd(layer.weight.detach())
    exact = 2 * (s[0] - 0.1) * u[:, :1] @ vh[:1]
    assert layer.weight.grad is not None
    assert torch.allclose(layer.weight.grad, exact, atol=1e-9)


def test_penalty_is_not_that_of_the_reshaped_kernel() -> None:
    # A blur's kernel of nine ninths: reshaped it has the norm 1/3, the operator nearly 1.
    layer = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    with torch.no_grad():
        layer.weight.fill_(1 / 9)
    spectral = lipschitz.penalty(layer, steps=200)
    layer(torch.zeros(1, 1, 40, 40))
    (norm,) = spectral.norms().values()
    exact = ((1 + 2 * torch.cos(torch.tensor(torch.pi / 41))) / 3) ** 2
    assert float(norm.detach()) == pytest.approx(float(exact), rel=1e-4)


def test_layers_below_the_target_are_free() -> None:
    network = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    matrices = torch.diag(torch.tensor([3.0, 1.0, 0.0])), torch.eye(3)
    network.load_state_dict({f"{i}.weight": m for i, m in enumerate(matrices)})
    spectral = lipschitz.penalty(network, target=1.5)
    network(torch.zeros(1, 3))
    value = spectral()
    assert float(value.detach()) == pytest.approx(1.5**2)
    value.backward()  # type: ignore[no-untyped-call] # torch
    first, second = (p.grad for p in network.parameters())
    assert first is not None
    assert second is not None
    assert float(first[0, 0]) == pytest.approx(3.0)
    assert not second.any()


class _Between(nn.Module):
    """Batch normalisation behind a ReLU that changes the convolution's output in place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act, self.norm = (
            nn.Conv1d(1, 2, 3),
            nn.ReLU(inplace=True),
            nn.BatchNorm1d(2),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.act(self.conv(x)))
        return y


def test_only_what_reads_a_layer_is_folded_into_it() -> None:
    between = _stirred(_Between())
    assert isinstance(between, _Between)
    nn.init.ones_(between.conv.weight)
    spectral = lipschitz.penalty(between, steps=300)
    between(torch.randn(2, 1, 9, dtype=torch.float64))
    found = spectral.norms()
    assert set(found) == {"conv", "norm"}
    assert float(found["conv"].detach()) == pytest.approx(
        float(_norm_of(between.conv, (1, 9)).detach())
    )
    assert float(found["norm"].detach()) == pytest.approx(
        float(_norm_of(between.norm, (2, 9)).detach())
    )


def test_zero_layers_cost_nothing_and_stay_finite() -> None:
    layer = nn.Linear(3, 2)
    nn.init.zeros_(layer.weight)
    spectral = lipschitz.penalty(layer)
    layer(torch.zeros(1, 3))
    for _ in range(2):
        value = spectral()
        value.backward()  # type: ignore[no-untyped-call] # torch
        assert float(value.detach()) == 0
        assert layer.weight.grad is not None
        assert bool(torch.isfinite(layer.weight.grad).all())


def _trained(weight: float) -> tuple[list[float], nn.Sequential, lipschitz.SpectralPenalty]:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(100, 2)
    )
    spectral = lipschitz.penalty(network)
    x = torch.randn(64, 1, 5, 5)
    y = (x.mean((1, 2, 3)) > 0).long()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = functional.cross_entropy(network(x), y) + weight * spectral()
        loss.backward()  # type: ignore[no-untyped-call] # torch
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses, network, spectral


def test_one_step_a_call_follows_the_weights_in_training() -> None:
    products = []
    for weight in (0.0, 0.05):
        losses, network, spectral = _trained(weight)
        found = [float(norm.detach()) for norm in spectral.norms().values()]
        network.double()
        exact = [
            float(_norm_of(network[:2], (1, 5, 5)).detach()),
            float(_norm_of(network[4], (100,)).detach()),
        ]
        assert found == pytest.approx(exact, rel=0.01)
        assert losses == _trained(weight)[0]
        products.append(exact[0] * exact[1])
    assert products[1] < 0.9 * products[0]


def test_size_of_the_map_is_that_of_the_last_pass_with_gradients() -> None:
    layer = nn.Conv1d(1, 1, 3, padding=1).double()
    nn.init.ones_(layer.weight)
    spectral = lipschitz.penalty(layer, steps=300)
    for side in (4, 12):
        layer(torch.zeros(2, 1, side, dtype=torch.float64))
        with torch.no_grad():
            layer(torch.zeros(2, 1, 30, dtype=torch.float64))
        (norm,) = spectral.norms().values()
        exact = 1 + 2 * math.cos(math.pi / (side + 1))
        assert float(norm.detach()) == pytest.approx(exact, rel=1e-9)


def test_a_penalised_module_can_be_saved_and_copied() -> None:
    layer = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    spectral = lipschitz.penalty(layer)
    layer(torch.randn(2, 1, 5, 5))
    spectral()
    file = io.BytesIO()
    torch.save(copy.deepcopy(layer), file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    x = torch.randn(2, 1, 5, 5)
    assert torch.equal(again.eval()(x), layer.eval()(x))


def test_what_cannot_be_penalised_is_refused() -> None:
    with pytest.raises(ValueError, match="no Linear, Conv"):
        lipschitz.penalty(nn.ReLU())
    with pytest.raises(ValueError, match="'1' normalises by its batch"):
        lipschitz.penalty(
            nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, track_running_stats=False))
        )
    with pytest.raises(ValueError, match="target must not be negative"):
        lipschitz.penalty(nn.Linear(2, 2), target=-1)
    with pytest.raises(ValueError, match="steps must be at least 1"):
        lipschitz.penalty(nn.Linear(2, 2), steps=0)
    with pytest.raises(RuntimeError, match="run the module forward"):
        lipschitz.penalty(nn.Linear(2, 2))()
