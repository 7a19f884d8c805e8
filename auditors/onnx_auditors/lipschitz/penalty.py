"""A differentiable penalty on the norms of a torch module's layers, for its training loop."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812  # the field's name for it
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

_Linear = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
_Transposed = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_FIRST_STEPS = 30
"""Power steps on a vector that is new."""
_KEY = "onnx_auditors.lipschitz.penalty"


class SpectralPenalty:
    """Sum over the layers of max(norm - target, 0)^2, with the L2 norms of the layers as they run.

    Szegedy et al. 2013, section 4.3, propose to regularise by penalising each layer's upper
    bound. The norm is that of the operator on the map that the layer sees, with its stride,
    padding, dilation and groups, not that of the reshaped kernel (which can be smaller by the
    root of the number of taps). It is estimated from below by power iteration (Yoshida and Miyato
    2017, for matrices), whose vector is kept from call to call, so that one step a call follows
    the weights. Its gradient by the weights is exact for the vector at hand. It trains; bounds
    come from `operator_bounds`.

    Layers are Linear, Conv and ConvTranspose of 1 to 3 axes, and batch normalisation with its
    running variance, as it is exported: folded into the layer whose output it reads, else its
    largest factor. Layers that no forward pass called do not count.
    """

    def __init__(self, module: nn.Module, target: float, steps: int, seed: int) -> None:
        self._target, self._steps, self._seed = target, steps, seed
        self._layers: dict[str, nn.Module] = {}
        self._shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
        self._scales: dict[str, str | None] = {}
        self._vectors: dict[str, Tensor] = {}
        for name, layer in module.named_modules():
            if isinstance(layer, _Linear | _Transposed):
                layer.register_forward_hook(partial(self._saw, name))
            elif isinstance(layer, _BatchNorm):
                if layer.running_var is None:
                    raise ValueError(
                        f"{name!r} normalises by its batch (track_running_stats=False): it has "
                        "no norm"
                    )
                layer.register_forward_pre_hook(partial(self._saw_scale, name))
            else:
                continue
            self._layers[name] = layer
        if not self._layers:
            raise ValueError("module has no Linear, Conv, ConvTranspose or BatchNorm layer")

    def __call__(self) -> Tensor:
        """Returns the penalty, a scalar.

        Raises:
            RuntimeError: If there was no forward pass with gradients yet.
        """
        excess = [(norm - self._target).clamp(min=0).square() for norm in self.norms().values()]
        return torch.stack([e.to(excess[0]) for e in excess]).sum()

    def norms(self) -> dict[str, Tensor]:
        """Returns the layers' norms by name, scalars that can be differentiated.

        Raises:
            RuntimeError: If there was no forward pass with gradients yet.
        """
        if not self._shapes and not self._scales:
            raise RuntimeError(
                "run the module forward, with gradients on, before the penalty: the norms of "
                "convolutions depend on the size of their map"
            )
        return dict(self._norms())

    def _norms(self) -> Iterator[tuple[str, Tensor]]:
        folded = {of: name for name, of in self._scales.items() if of is not None}
        for name in self._shapes:
            yield name, self._norm(name, folded.get(name))
        for name, of in self._scales.items():
            if of is None:
                yield name, _factors(cast("_BatchNorm", self._layers[name])).abs().amax()

    def _norm(self, name: str, scaled_by: str | None) -> Tensor:
        layer = cast("_Linear | _Transposed", self._layers[name])
        taken, given = self._shapes[name]
        weight = layer.weight.to(torch.promote_types(layer.weight.dtype, torch.float32))
        scale = None
        if scaled_by is not None:
            scale = _factors(cast("_BatchNorm", self._layers[scaled_by])).to(weight)
        v = self._vectors.get(name)
        steps = self._steps
        if v is None or v.shape[1:] != taken:
            generator = torch.Generator().manual_seed(self._seed)
            v, steps = torch.randn(1, *taken, generator=generator), steps + _FIRST_STEPS
        v = v.to(weight)
        with torch.autocast(weight.device.type, enabled=False):
            fixed = None if scale is None else scale.detach()
            for _ in range(steps):
                v = _power_step(partial(_apply, layer, weight.detach(), fixed, given), v)
            self._vectors[name] = v
            return cast("Tensor", torch.linalg.vector_norm(_apply(layer, weight, scale, given, v)))

    def _saw(self, name: str, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return
        if output.grad_fn is not None:
            cast("Any", output.grad_fn.metadata)[_KEY] = name
        axes = 1 if isinstance(layer, nn.Linear) else cast("nn.Conv2d", layer).weight.ndim - 1
        self._shapes[name] = tuple(inputs[0].shape[-axes:]), tuple(output.shape[-axes:])

    def _saw_scale(self, name: str, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return
        node = inputs[0].grad_fn
        # What is done to a layer's output in between, in place or not, has a node of its own.
        self._scales[name] = None if node is None else cast("Any", node.metadata).get(_KEY)


def penalty(
    module: nn.Module, *, target: float = 0.0, steps: int = 1, seed: int = 0
) -> SpectralPenalty:
    """Returns a penalty on the norms of a module's layers, to be called after forward passes.

        spectral = penalty(network)
        for x, y in batches:
            loss = cross_entropy(network(x), y) + 1e-3 * spectral()

    Args:
        module: The network; hooks note the sizes of maps in forward passes with gradients on.
        target: Norm up to which a layer is free.
        steps: Power steps a call; one forward and one backward pass of one sample each.
        seed: Of the vectors that the power iteration starts from.

    Raises:
        ValueError: If the module has no layer that counts, or one that normalises by its batch
            alone, or if `target` is negative or `steps` below 1.
    """
    if target < 0:
        raise ValueError(f"target must not be negative, found {target}")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, found {steps}")
    return SpectralPenalty(module, target, steps, seed)


def _factors(layer: _BatchNorm) -> Tensor:
    """What a batch normalisation multiplies each channel by, [channels]."""
    rate = torch.rsqrt(cast("Tensor", layer.running_var) + layer.eps)
    return rate if layer.weight is None else layer.weight * rate


def _power_step(apply: partial[Tensor], v: Tensor) -> Tensor:
    """Returns A'A v, normalised; v where that is 0."""
    with torch.enable_grad():
        leaf = v.detach().requires_grad_()
        (pulled,) = torch.autograd.grad(apply(leaf).square().sum() / 2, leaf)
    norm = torch.linalg.vector_norm(pulled)
    return torch.where(norm > 0, pulled / norm, v / torch.linalg.vector_norm(v))


def _apply(
    layer: _Linear | _Transposed,
    weight: Tensor,
    scale: Tensor | None,
    given: tuple[int, ...],
    x: Tensor,
) -> Tensor:
    """The layer without its bias, and a factor per channel, on [1, *map]."""
    if isinstance(layer, nn.Linear):
        y = F.linear(x, weight)
        return y if scale is None else y * scale
    rank = weight.ndim - 2
    if isinstance(layer, _Transposed):
        padding = cast("tuple[int, ...]", layer.padding)
        size = zip(x.shape[2:], given[1:], layer.kernel_size, padding, strict=True)
        extra = [
            n - ((m - 1) * s - 2 * p + d * (k - 1) + 1)
            for (m, n, k, p), s, d in zip(size, layer.stride, layer.dilation, strict=True)
        ]
        y = _TRANSPOSE[rank](
            x, weight, None, layer.stride, padding, extra, layer.groups, layer.dilation
        )
    else:
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        padded = F.pad(x, _pads(layer), mode)
        y = _CONV[rank](padded, weight, None, layer.stride, 0, layer.dilation, layer.groups)
    return y if scale is None else y * scale.reshape(-1, *[1] * rank)


def _pads(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> list[int]:
    """In the order of torch: last axis first, begin and end."""
    if layer.padding == "same":
        reach = [d * (k - 1) for k, d in zip(layer.kernel_size, layer.dilation, strict=True)]
        return [p for r in reversed(reach) for p in (r // 2, r - r // 2)]
    if layer.padding == "valid":
        return [0] * (2 * len(layer.kernel_size))
    return [p for p in reversed(cast("tuple[int, ...]", layer.padding)) for _ in range(2)]
