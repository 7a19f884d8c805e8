"""The layers of a network as bounds and units look at them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx
from torch import Tensor

from onnx_auditors.network.plan import Plan, Step
from onnx_auditors.network.reading import names_in

_LINEAR = names_in(
    "Conv ConvTranspose Gemm MatMul BatchNormalization Add Sub Sum Mean Neg Mul Div AveragePool "
    "GlobalAveragePool ReduceMean ReduceSum Identity Cast Dropout Reshape Flatten Squeeze "
    "Unsqueeze Transpose Concat Split Slice Gather GatherElements Expand Tile Pad Resize Upsample "
    "DepthToSpace SpaceToDepth CumSum Trilu Einsum"
)
"""Operators that are linear, or affine, in one of their inputs while the others are constant."""
_LINEAR_TOGETHER = names_in("Add Sub Sum Mean Concat")
"""Those that are linear in all inputs together."""


@dataclass(frozen=True)
class Layer:
    """One node of a network, with what does not depend on the input's content.

    Attributes:
        name: Name of the node; may be empty.
        op_type: Its operator.
        inputs: Names of the values that it reads and that depend on the model's input.
        output: Name of its first output.
        outputs: Names of all its outputs.
        weights: Constant inputs by position, such as 1 for a convolution's kernel.
        attributes: The node's attributes by name.
        input_shapes: Shapes of `inputs`, batch included.
        output_shape: Shape of `output`, batch included.
        linear: Whether it is linear or affine in its inputs.
    """

    name: str
    op_type: str
    inputs: tuple[str, ...]
    output: str
    outputs: tuple[str, ...]
    weights: dict[int, Tensor]
    attributes: dict[str, Any]
    input_shapes: tuple[tuple[int, ...], ...]
    output_shape: tuple[int, ...]
    linear: bool

    @property
    def kind(self) -> str:
        """Either "linear" or "nonlinear"."""
        return "linear" if self.linear else "nonlinear"


def layers_of(plan: Plan) -> list[Layer]:
    """Returns the layers of a plan in order."""
    return [_layer(plan, step) for step in plan.steps]


def _layer(plan: Plan, step: Step) -> Layer:
    known = [(i, plan.values[name]) for i, name in enumerate(step.reads) if name]
    varying = [v for _, v in known if v.constant is None]
    first = next(name for name in step.outputs if name)
    op_type = step.node.op_type
    linear = op_type in _LINEAR and (
        op_type in _LINEAR_TOGETHER
        or (len(varying) == 1 and not (op_type == "Div" and known[0][1].constant is not None))
    )
    if op_type == "Gather" and known[0][1].constant is not None:
        linear = False
    return Layer(
        name=step.node.name,
        op_type=op_type,
        inputs=tuple(v.name for v in varying),
        output=first,
        outputs=tuple(name for name in step.outputs if name),
        weights={i: v.constant for i, v in known if v.constant is not None},
        attributes={
            a.name: onnx.helper.get_attribute_value(a)
            for a in step.node.attribute
            if a.type not in {onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS}
        },
        input_shapes=tuple(v.shape for v in varying),
        output_shape=plan.shape(first),
        linear=linear,
    )
