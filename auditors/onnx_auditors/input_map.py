"""The differentiable map from probe space to the model's input."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from onnx_audit import v1
from onnx_auditors.input_spec import sample_shape


class InputMap:
    """Takes a batch in probe space to the model's input: layout, channel order, (x - mean) / std.

    Attributes:
        lower: Lower end of the box, float32, broadcasts to a probe.
        upper: Upper end of the box, likewise.
        probe_shape: Shape of one probe.
        model_shape: Shape of one sample of the model's input.
    """

    def __init__(
        self,
        spec: v1.InputSpec,
        model: v1.ModelSummary,
        probes: v1.ProbeSummary,
        device: str | torch.device = "cpu",
    ) -> None:
        """Prepares the map.

        Args:
            spec: The spec as `input_spec.resolve` returns it.
            model: The model.
            probes: The probe set.
            device: Where batches lie.
        """
        self.probe_shape = tuple(probes.shape)
        self.model_shape = sample_shape(spec, model, probes)
        self._divisor = np.float32(spec.divisor)
        self._order = _permutation(spec, len(self.probe_shape))
        self._reversed = spec.channel_order == v1.CHANNEL_ORDER_REVERSED
        self._channel_axis = _channel_axis(spec.model_layout, len(self.model_shape))

        def per_channel(values: Any, layout: v1.Layout.ValueType, shape: tuple[int, ...]) -> Tensor:  # noqa: ANN401 - protobuf's list
            tensor = torch.tensor(list(values), dtype=torch.float32, device=device)
            return tensor.reshape(_broadcast_shape(len(values), layout, shape))

        self.lower = per_channel(spec.lower, spec.probe_layout, self.probe_shape)
        self.upper = per_channel(spec.upper, spec.probe_layout, self.probe_shape)
        self._mean = per_channel(spec.mean, spec.model_layout, self.model_shape)
        self._std = per_channel(spec.std, spec.model_layout, self.model_shape)

    def __call__(self, x: Tensor) -> Tensor:
        """Returns the model's input [n, *model shape] for probes [n, *probe shape]."""
        if self._order is not None:
            x = x.permute(0, *(axis + 1 for axis in self._order))
        x = x.reshape(len(x), *self.model_shape)
        if self._reversed:
            x = x.flip(self._channel_axis + 1)
        return (x - self._mean) / self._std

    def box(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Returns the ends of the box in probe space, broadcasting to a probe."""
        return self.lower.cpu().double().numpy(), self.upper.cpu().double().numpy()

    def to_probe_space(self, raw: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Returns stored values over the divisor, float32."""
        return np.asarray(raw, dtype=np.float32) / self._divisor


def _permutation(spec: v1.InputSpec, rank: int) -> tuple[int, ...] | None:
    """Returns the order of a probe's axes that the model's layout has; None to leave it."""
    layouts = (spec.probe_layout, spec.model_layout)
    image = 3
    if rank != image or layouts[0] == layouts[1]:
        return None
    return (2, 0, 1) if layouts[1] == v1.LAYOUT_CHW else (1, 2, 0)


def _channel_axis(layout: v1.Layout.ValueType, rank: int) -> int:
    return rank - 1 if layout == v1.LAYOUT_HWC else 0


def _broadcast_shape(
    count: int, layout: v1.Layout.ValueType, shape: tuple[int, ...]
) -> tuple[int, ...]:
    if count == 1:
        return (1,) * len(shape)
    if layout == v1.LAYOUT_FLAT:
        if count != math.prod(shape):
            raise ValueError(f"{count} values for a shape {shape}")
        return shape
    axis = _channel_axis(layout, len(shape))
    return tuple(count if i == axis else 1 for i in range(len(shape)))
