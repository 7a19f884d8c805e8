"""Finds the output that holds class scores, the logits behind it, and how they are to be read."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from onnx_audit import v1
from onnx_auditors.errors import InvalidModel
from onnx_auditors.network.node import Value

FLOATS = frozenset({"float", "float16", "bfloat16", "double"})
_PASSES_ON = frozenset(
    {"Identity", "Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Dropout", "Transpose"}
)
_KEEPS_ENTRIES = _PASSES_ON - {"Transpose"}
_PICKS = frozenset({"ArgMax", "TopK"})
_LIKELY = ("logit", "score", "prob", "class", "pred", "label", "output", "softmax")
"""Parts of names that outputs with class scores have."""
_MATRIX = 2
_SQUASHES = frozenset({"Sigmoid", "HardSigmoid", "Softmax", "QLinearSigmoid", "QLinearSoftmax"})
"""Operators with results in [0, 1]."""
_STAYS_IN_RANGE = _PASSES_ON | {
    "Clip", "Slice", "Gather", "Split", "TopK", "QuantizeLinear", "DequantizeLinear"
}  # fmt: skip
"""Operators that leave probabilities what they are, though not all of them."""


class Column(enum.Enum):
    """What a model means that gives one score per sample: class 1 where it is above this value."""

    PROBABILITY = 0.5
    LOGIT = 0.0


@dataclass(frozen=True)
class Answer:
    """How a model's answer is read.

    Attributes:
        output: Name of the output that it is read from.
        logits: Name of the value that the network's logits are made of.
        classes: Number of classes; 0 where shapes are not known.
        column: What the output means where it is one score per sample, read as two classes.
        boundary: What the value `logits` is where such a model is undecided.
        in_a_row: Whether the output is labels or one row of scores per sample, as far as is known.
    """

    output: str = ""
    logits: str = ""
    classes: int = 0
    column: Column | None = None
    boundary: float = 0.0
    in_a_row: bool = True


def two_classes(table: npt.NDArray[Any], column: Column | None) -> npt.NDArray[Any]:
    """Returns class scores [n, 2] of a column of scores [n, 1]; another table as it is.

    Class 1 has the larger score exactly where the column is above its threshold; at the threshold
    both are the same, and `argmax` says 0. A probability p gives (1 - p, p), where 1 - p is exact
    from 0.5 on and not below 0.5 before; a logit z gives (0, z).
    """
    if column is None:
        return table
    rest = 1 - table if column is Column.PROBABILITY else np.zeros_like(table)
    return np.concatenate([rest, table], axis=1)


def find_answer(
    graph: onnx.GraphProto,
    outputs: Sequence[v1.TensorInfo],
    values: Mapping[str, Value],
    rows: int,
    wanted: str | None = None,
) -> Answer:
    """Returns how the model's answer is read.

    Args:
        graph: The graph.
        outputs: Its outputs as declared.
        values: What is known of its values, by name; may lack them.
        rows: Batch at which they were computed.
        wanted: Name of the output that the user asks for.

    Raises:
        InvalidModel: No output holds class scores, or several may.
    """
    output = choose_output(outputs, values, rows, wanted)
    if output not in values:
        return Answer(output, output)
    logits = find_logits(graph, output, values)
    classes = math.prod(values[logits].shape) // rows
    if classes == 0:
        raise InvalidModel(f"output '{output}' holds no score for each sample")
    picked = not values[output].meta.is_floating_point()
    if classes > 1 or picked:
        long = [size for size in values[output].shape if size > 1]
        in_a_row = picked or len(long) <= (2 if rows > 1 else 1)
        return Answer(output, logits, classes, in_a_row=in_a_row)
    return _read_column(graph, output, values)


def _read_column(graph: onnx.GraphProto, output: str, values: Mapping[str, Value]) -> Answer:
    """Says what one score per sample means.

    Behind a sigmoid at the end it is a probability. So it is where it is one of several entries of
    a softmax, or a sigmoid is followed by operators that change its entries; then the boundary is
    at 0.5 of the output itself. A softmax over a single score leaves one class. Anything else is
    taken as a logit.
    """
    makers = {name: node for node in graph.node for name in node.output}
    size = values[output].meta.numel()
    node = _maker(makers, output, {"Sigmoid"}, _KEEPS_ENTRIES | {"Clip"})
    if node is not None:
        return Answer(output, node.input[0], 2, Column.PROBABILITY)
    node = _maker(makers, output, _SQUASHES | {"LogSoftmax"}, _STAYS_IN_RANGE)
    if node is None:
        return Answer(output, output, 2, Column.LOGIT)
    if "Softmax" in node.op_type and values[node.output[0]].meta.numel() == size:
        return Answer(output, output, 1)
    if node.op_type == "LogSoftmax":
        raise InvalidModel(
            f"output '{output}' is the logarithm of one class's probability; export all of them"
        )
    return Answer(output, output, 2, Column.PROBABILITY, boundary=Column.PROBABILITY.value)


def choose_output(
    outputs: Sequence[v1.TensorInfo],
    values: Mapping[str, Value],
    rows: int,
    wanted: str | None = None,
) -> str:
    """Returns the name of the output that the model's answer is read from.

    Of several the one that looks like class scores is taken: of a floating type, with one row of
    at least two scores per sample, unless one with a single score has a likelier name; then by its
    name. Without scores an output of integers, which may be labels, will do.

    Args:
        outputs: Outputs as declared.
        values: What is known of them, by name; may lack them.
        rows: Batch at which they were computed.
        wanted: Name that the user asks for.

    Raises:
        InvalidModel: There is no such output, or several are as likely.
    """
    names = [output.name for output in outputs]
    if wanted is not None:
        if wanted not in names:
            raise InvalidModel(f"the model has no output '{wanted}'; it has {', '.join(names)}")
        return wanted
    floats = [output for output in outputs if output.dtype in FLOATS]
    if len(floats) == 1:
        return floats[0].name
    if not floats:
        if len(outputs) == 1 and "int" in outputs[0].dtype:
            return names[0]
        found = ", ".join(f"{o.name}: {o.dtype}" for o in outputs)
        raise InvalidModel(f"no output holds class scores of a floating type; found {found}")
    rowwise = [o for o in floats if _is_row_of_scores(_shape(o, values), rows)]
    columns = [o for o in floats if _is_column(_shape(o, values), rows)]
    likely = [o for o in (*rowwise, *columns) or floats if _has_likely_name(o)]
    rows_go_first = len(rowwise) == 1 and (rowwise[0] in likely or not likely)
    chosen = rowwise if rows_go_first else likely
    if len(chosen) == 1:
        return chosen[0].name
    listed = ", ".join(f"'{o.name}' {list(_shape(o, values))}" for o in chosen or rowwise or floats)
    raise InvalidModel(f"several outputs may hold the class scores: {listed}; name one as `output`")


def _shape(output: v1.TensorInfo, values: Mapping[str, Value]) -> tuple[int, ...]:
    return values[output.name].shape if output.name in values else tuple(output.shape)


def _is_row_of_scores(shape: tuple[int, ...], rows: int) -> bool:
    """Says whether a shape is [n, classes], with further axes of size 1."""
    long = [size for size in shape[1:] if size != 1]
    return len(shape) >= _MATRIX and shape[0] in {rows, -1} and len(long) == 1


def _is_column(shape: tuple[int, ...], rows: int) -> bool:
    """Says whether a shape is [n], with further axes of size 1."""
    return shape[:1] in {(rows,), (-1,)} and all(size == 1 for size in shape[1:])


def _has_likely_name(output: v1.TensorInfo) -> bool:
    return any(part in output.name.lower() for part in _LIKELY)


def find_logits(graph: onnx.GraphProto, output: str, values: Mapping[str, Value]) -> str:
    """Returns the name of the last value before class scores are squashed or picked from.

    From integers it walks back to the scores of which the largest was picked. A softmax over the
    classes or a sigmoid at the end is left out: gradients vanish there where the model is sure.
    Between it and the output only operators that keep the entries may stand.

    Raises:
        InvalidModel: The output is of integers that are not picked from scores.
    """
    makers = {name: node for node in graph.node for name in node.output}
    if not values[output].meta.is_floating_point() or _maker(makers, output, _PICKS):
        node = _maker(makers, output, _PICKS)
        if node is None:
            raise InvalidModel(
                f"output '{output}' is of integers and not the largest of scores; name an output "
                "with class scores as `output`"
            )
        output = node.input[0]
    node = _maker(makers, output, {"Softmax", "LogSoftmax", "Sigmoid"}, _KEEPS_ENTRIES)
    if node is None:
        return output
    if node.op_type == "Sigmoid":
        return node.input[0]
    axis = next((a.i for a in node.attribute if a.name == "axis"), -1)
    shape, scores = values[node.input[0]].shape, values[output].shape
    if not shape or not scores:
        return output  # a single number, whatever the batch
    classes = math.prod(scores[1:])
    one_row_per_sample = math.prod(shape) == scores[0] * classes and shape[axis] == classes
    return node.input[0] if one_row_per_sample else output


def _maker(
    makers: Mapping[str, onnx.NodeProto],
    name: str,
    wanted: frozenset[str] | set[str],
    passing: frozenset[str] = _PASSES_ON,
) -> onnx.NodeProto | None:
    """Returns the node of the wanted kind that a value comes from, through ones that pass it on."""
    node = makers.get(name)
    while node is not None and node.op_type in passing:
        node = makers.get(node.input[0])
    return node if node is not None and node.op_type in wanted else None
