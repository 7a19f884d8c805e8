"""Resizing of probes on their way to a model of another input size.

Written as two products with matrices of weights, which has a deterministic gradient on every
device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from onnx_audit import v1
from onnx_auditors.input_map import InputMap
from onnx_auditors.transfer.peer_spec import PeerSpec


def weights(length: int, target: int) -> Tensor:
    """Returns the matrix of linear interpolation along one axis, float32 [target, length].

    Pixels are squares (half-pixel centres); the filter is a triangle as wide as two pixels of the
    coarser axis, so that nothing is left out where the axis shrinks. Every row adds up to 1 and has
    no negative entry, so the box is kept.
    """
    scale = length / target
    centres = (torch.arange(target, dtype=torch.float64) + 0.5) * scale
    distance = (torch.arange(length, dtype=torch.float64) + 0.5)[None, :] - centres[:, None]
    triangle = (1 - distance.abs() / max(1.0, scale)).clamp_min(0)
    return (triangle / triangle.sum(1, keepdim=True)).float()


class Separable:
    """A linear map of images that acts on rows and columns separately.

    Args:
        rows: Matrix for the height, [new height, height].
        columns: Matrix for the width, [new width, width].
        layout: Order of the image's axes; height, width for images of two axes.
    """

    def __init__(self, rows: Tensor, columns: Tensor, layout: v1.Layout.ValueType) -> None:
        self._rows, self._columns = rows, columns
        self._channels_last = layout == v1.LAYOUT_HWC

    def __call__(self, x: Tensor) -> Tensor:
        """Returns the mapped batch of [n, height, width] or [n, ...] in the layout."""
        last = self._channels_last and x.dim() > 3  # noqa: PLR2004 - batch, height, width
        if last:
            x = x.movedim(-1, 1)
        x = self._rows @ x @ self._columns.T
        return x.movedim(1, -1) if last else x


class PeerMap(InputMap):
    """From the common probe space to the input of a peer, by way of another size if need be."""

    def __init__(
        self,
        resolved: PeerSpec,
        model: v1.ModelSummary,
        common: InputMap,
        device: str | torch.device,
    ) -> None:
        """Prepares the map.

        Args:
            resolved: The peer's spec.
            model: The peer.
            common: The audited model's map, whose probe space is everybody's.
            device: Where batches lie.
        """
        super().__init__(resolved.spec, model, resolved.probes, device)
        self._resize: Separable | None = None
        if resolved.size is not None:
            layout = resolved.spec.probe_layout
            shape = common.probe_shape
            height, width = shape[:2] if layout == v1.LAYOUT_HWC else shape[-2:]
            self._resize = Separable(
                weights(height, resolved.size[0]).to(device),
                weights(width, resolved.size[1]).to(device),
                layout,
            )
        self.probe_shape = common.probe_shape
        self.lower, self.upper = common.lower, common.upper

    def __call__(self, x: Tensor) -> Tensor:
        """Returns the model's input [n, *model shape] for probes [n, *probe shape]."""
        return super().__call__(x if self._resize is None else self._resize(x))
