"""Fourier transforms and what goes with them."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from onnx_auditors.network.node import Node
from onnx_auditors.network.registry import Function, operator

_COMPLEX = 2
_WINDOWS: dict[str, tuple[float, ...]] = {
    "HannWindow": (0.5, 0.5),
    "HammingWindow": (25 / 46, 21 / 46),
    "BlackmanWindow": (0.42, 0.5, 0.08),
}


@operator(*_WINDOWS, since=17)
def cosine_window(node: Node) -> Function:
    """A window that is a sum of cosines with alternating signs."""
    periodic = bool(node.integer("periodic", 1))
    dtype = node.dtype(node.integer("output_datatype", 1))
    (size,) = node.constant_ints(0)
    node.check_size([size], torch.float64)
    angles = 2 * math.pi * np.arange(size) / (size if periodic else size - 1)
    terms = enumerate(_WINDOWS[node.op_type])
    window = torch.from_numpy(np.asarray(sum((-1) ** k * a * np.cos(k * angles) for k, a in terms)))
    return lambda: window.to(dtype)


@operator("DFT", since=17)
def fourier_transform(node: Node) -> Function:
    """Discrete Fourier transform along an axis; the last axis holds real and imaginary parts."""
    rank = len(node.shape())
    inverse, onesided = bool(node.integer("inverse", 0)), bool(node.integer("onesided", 0))
    if node.opset >= 20:  # noqa: PLR2004 - the opset's number
        axis = node.constant_ints(2)[0] if node.present(2) else -2
    else:
        axis = node.integer("axis", 1)
    axis %= rank
    length = node.constant_ints(1)[0] if node.present(1) else None
    is_complex = node.shape()[-1] == _COMPLEX

    def function(x: Tensor) -> Tensor:
        if inverse and onesided:
            signal: Tensor = torch.fft.irfft(torch.view_as_complex(x.contiguous()), length, axis)
            return signal.unsqueeze(-1)
        values = torch.view_as_complex(x.contiguous()) if is_complex else x.squeeze(-1)
        if onesided:
            transformed = torch.fft.rfft(values, length, axis)
        else:
            transform = torch.fft.ifft if inverse else torch.fft.fft
            transformed = transform(values, length, axis)
        return torch.view_as_real(transformed)

    return function


@operator("STFT", since=17)
def short_time_fourier_transform(node: Node) -> Function:
    """Fourier transforms of overlapping frames of real signals."""
    onesided = bool(node.integer("onesided", 1))
    (step,) = node.constant_ints(1)
    if len(node.shape()) > _COMPLEX and node.shape()[-1] == _COMPLEX:
        node.refuse("complex signals are not covered")
    size = node.constant_ints(3)[0] if node.present(3) else node.shape(2)[0]
    shape = node.shape()[:2]

    def function(signal: Tensor, window: Tensor | None = None) -> Tensor:
        frames = signal.reshape(shape).unfold(-1, size, step)
        frames = frames if window is None else frames * window
        spectrum = torch.fft.rfft(frames) if onesided else torch.fft.fft(frames)
        return torch.view_as_real(spectrum)

    return function
