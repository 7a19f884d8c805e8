"""Slope ranges, secants and lines of activations against dense grids."""

from __future__ import annotations

import pytest
import torch
from tests.auditors.lipschitz.nets import KINDS

from onnx_auditors.lipschitz import graph_of
from onnx_auditors.lipschitz.activations import Activation
from onnx_auditors.network import load

ELEMENTWISE = [k for k in KINDS if " " not in k and k[0].isupper() and k != "LRN"] + ["Gelu tanh"]


def _activation(kind: str) -> Activation:
    found = next(n.rule for n in graph_of(load(KINDS[kind](0))).bent)
    assert isinstance(found, Activation)
    return found


def _intervals() -> tuple[torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(0)
    middle = 3 * torch.randn(200, generator=draws, dtype=torch.float64)
    width = 10 ** (4 * torch.rand(200, generator=draws, dtype=torch.float64) - 3)
    return middle - width, middle + width


@pytest.mark.parametrize("kind", ELEMENTWISE)
def test_derivatives_stay_in_their_ranges(kind: str) -> None:
    """Slopes by autograd on a grid lie in the global range, and touch its larger end."""
    rule = _activation(kind)
    x = torch.linspace(-12, 12, 400_001, dtype=torch.float64).requires_grad_()
    (slope,) = torch.autograd.grad(rule.function(x).sum(), x)
    assert rule.bounds[0] <= float(slope.min()) + 1e-12
    assert float(slope.max()) <= rule.bounds[1] + 1e-12
    assert float(slope.abs().max()) >= 0.999 * max(map(abs, rule.bounds))


@pytest.mark.parametrize("kind", ELEMENTWISE)
def test_intervals_hold_all_that_they_should(kind: str) -> None:
    """Values, slopes, lines and secants on random intervals enclose those on a grid."""
    rule = _activation(kind)
    low, high = _intervals()
    shares = torch.linspace(0, 1, 1001, dtype=torch.float64)[:, None]
    points = (low + shares * (high - low)).requires_grad_()
    values = rule.function(points)
    (slope,) = torch.autograd.grad(values.sum(), points)
    values, points = values.detach(), points.detach()
    least, most = rule.slopes(low, high)
    assert bool((slope >= least - 1e-12).all())
    assert bool((slope <= most + 1e-12).all())
    lines = rule.lines(low, high)
    assert bool((values >= lines.lower_slope * points + lines.lower_offset).all())
    assert bool((values <= lines.upper_slope * points + lines.upper_offset).all())
    bottom, top = rule.range(low, high)
    assert bool(((values >= bottom) & (values <= top)).all())
    anchor = low + 0.3 * (high - low)
    secant = (values - rule.function(anchor)) / (points - anchor)
    far = (points - anchor).abs() > 1e-4 * (high - low)
    bottom, top = rule.secants(anchor, low, high)
    assert bool(((secant >= bottom - 1e-9) | ~far).all())
    assert bool(((secant <= top + 1e-9) | ~far).all())
