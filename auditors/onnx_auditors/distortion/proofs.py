"""Lower bounds beside what the search finds: exact optima of small models, and the sandwich.

The optimum is that of the model in real arithmetic. The file is run in float32, where logits are
off by rounding; a lower bound that holds there too counts an answer as changed as soon as the
other logit comes that close. Rounding of a sum of n products, in any order, is at most gamma_n
times the sum of their sizes, gamma_n = n u / (1 - n u), u = 2^-24 (Higham 2002, Accuracy and
Stability of Numerical Algorithms, 2nd ed., section 3.1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnx_audit import v1
from onnx_auditors.context import Context
from onnx_auditors.distortion.batch import Batch, squashed
from onnx_auditors.distortion.exact import SmallModel, ancestors, exact, small_model
from onnx_auditors.distortion.polyhedra import Floats
from onnx_auditors.distortion.searching import Found, name_of
from onnx_auditors.errors import BoundsCrossed

NORMS = (v1.NORM_L2, v1.NORM_LINF, v1.NORM_L1)
"""The norms with exact optima."""
_UNIT = 2.0**-24
_MORE_TERMS = 8
"""Roundings besides those of the sums: the map's two, the bias, and some to spare."""
_SQUASH = 1e-5
"""Difference of logits that a softmax or sigmoid in float32 may round away."""
_FLOAT64 = 1e-9
_OPTIMUM = 1e-4
"""How far an optimum may be above its proved lower bound, as a share of it."""
_DUAL_TOLERANCE = 1e-7
"""HiGHS' tolerance of reduced costs; a dual bound is off by at most that times each variable's
range."""
_WEIGHTED = frozenset({"Gemm", "MatMul", "Conv"})
_BIAS = frozenset({"Add"})
_EXACT = frozenset({"Flatten", "Reshape", "Identity", "Transpose", "Squeeze", "Unsqueeze",
                    "Dropout", "Relu"})  # fmt: skip
"""Operators that do not round."""


@dataclass(frozen=True)
class Prover:
    """A small model.

    Attributes:
        model: Its weights.
        slack: Bound of the rounding errors of two logits together; None where there is none.
    """

    model: SmallModel
    slack: float | None

    @classmethod
    def of(cls, context: Context) -> Prover | None:
        """Returns a prover; None where the model is not small enough."""
        shape, input_map = context.input_map.probe_shape, context.input_map
        if context.device.type != "cpu" or context.network.surrogate:
            return None
        model = small_model(context.network, shape, input_map)
        return None if model is None else cls(model, _slack(context, model))

    def prove(
        self,
        context: Context,
        batch: Batch,
        norm: v1.Norm.ValueType,
        found: Found,
        chosen: npt.NDArray[np.bool_],
    ) -> dict[int, v1.CertifiedRadius]:
        """Returns what is proved of the chosen probes that were searched, by their position."""
        rows = np.flatnonzero(chosen & batch.searched)
        if norm not in NORMS or not len(rows):
            return {}
        inputs, labels = batch.inputs[rows], batch.labels[rows]
        targets = batch.targets[rows] if (batch.targets[rows] >= 0).all() else None
        lower, upper = context.input_map.box()
        name, box = name_of(norm), (lower, upper)
        best = exact(self.model, inputs, labels, name, targets, box=box,
                     known=found.best.examples[rows])  # fmt: skip
        # Where the nearest change only just ties, as where no unit is active, none may be found.
        known = best.distance <= best.lower * (1 + _OPTIMUM)
        proved = {
            int(row): v1.CertifiedRadius(
                method=v1.CERTIFICATE_METHOD_EXACT, optimum=distance if sure else None
            )
            for row, distance, sure in zip(rows, best.distance.tolist(), known, strict=True)
        }
        if self.slack is not None:
            with_slack = exact(self.model, inputs, labels, name, targets, box=box,
                               known=best.examples, slack=self.slack)  # fmt: skip
            for row, bound, size in zip(rows, with_slack.lower, best.distance, strict=True):
                proved[int(row)].lower = _below(bound, size, norm, inputs[0].size, lower, upper)
        return proved


def check(
    batch: Batch, norm: v1.Norm.ValueType, found: Found, proved: dict[int, v1.CertifiedRadius]
) -> None:
    """Checks that no confirmed example is nearer than what is proved.

    Raises:
        BoundsCrossed: One is.
    """
    for place, radius in proved.items():
        if found.best.distance[place] < radius.lower:
            raise BoundsCrossed(
                f"probe {batch.rows[place]}: an example at {name_of(norm)} distance "
                f"{found.best.distance[place]:.9g} was confirmed by ONNX Runtime, and it is proved "
                f"({v1.CertificateMethod.Name(radius.method)}) that there is none below "
                f"{radius.lower:.9g}; one of the two is wrong, so the audit stops",
                probe=str(batch.rows[place]),
                norm=v1.Norm.Name(norm),
            )


def _below(
    bound: float, size: float, norm: v1.Norm.ValueType, width: int, lower: Floats, upper: Floats
) -> float:
    """Returns a bound that holds for the rounding and the tolerances of the solver."""
    if math.isinf(bound):
        return bound
    if norm != v1.NORM_L2:
        reach = float((upper - lower).max())
        # Rises and falls of each entry, and the size itself.
        ranges = 2 * width * min(reach, size) if norm == v1.NORM_LINF else 2 * width * reach
        bound -= _DUAL_TOLERANCE * (ranges + reach)
    return max(0.0, bound * (1 - _FLOAT64))


def _slack(context: Context, model: SmallModel) -> float | None:
    """Returns a bound of the rounding errors of two logits anywhere in the box.

    None where the graph has other operators than sums of products, one on each side of the ReLUs,
    or computes in half precision: the bound does not see what lies in between.
    """
    network = context.network
    layers = ancestors(network.layers, network.logits)
    ops = [layer.op_type for layer in layers]
    bends = ops.index("Relu") if "Relu" in ops else len(ops)
    sides = (ops[:bends], ops[bends:])
    simple = all(op in _WEIGHTED | _BIAS | _EXACT for op in ops) and all(
        sum(op in _WEIGHTED for op in side) <= 1 and sum(op in _BIAS for op in side) <= 1
        for side in sides
    )
    if not simple or network.half_precision or network.input.dtype != "float":
        return None
    spec = context.spec
    centre = max(abs(value) for value in spec.mean)
    reach = max(abs(value) for value in (*spec.lower, *spec.upper))
    at_input = reach + 2 * centre  # |x - mean|, and the mean's share of the bias
    if model.inner is None or model.inner_bias is None:
        terms = np.abs(model.outer) @ np.full(model.outer.shape[1], at_input)
        error = _sum_error(model.outer.shape[1], terms + np.abs(model.outer_bias))
    else:
        width, units = model.inner.shape[1], model.inner.shape[0]
        terms = np.abs(model.inner) @ np.full(width, at_input) + np.abs(model.inner_bias)
        before = _sum_error(width, terms)
        weights = np.abs(model.outer)
        error = weights @ before
        error += _sum_error(units, weights @ (terms + before) + np.abs(model.outer_bias))
    return float(2 * error.max()) + (_SQUASH if squashed(context) else 0.0)


def _sum_error(count: int, sizes: Floats) -> Floats:
    """Returns twice the bound of a sum's rounding: that of the file, and that of reading it."""
    terms = (count + _MORE_TERMS) * _UNIT
    bound: Floats = 2 * terms / (1 - terms) * sizes
    return bound
