"""Finds the output that holds class scores, and the logits behind it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

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


def choose_output(
    outputs: Sequence[v1.TensorInfo],
    values: Mapping[str, Value],
    rows: int,
    wanted: str | None = None,
) -> str:
    """Returns the name of the output that the model's answer is read from.

    Of several the one that looks like class scores is taken: of a floating type, with one row of
    at least two scores per sample; then by its name. Without scores an output of integers, which
    may be labels, will do.

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
    rowwise = [o for o in floats if _is_row_of_scores(_shape(o, values), rows)] or floats
    named = [o for o in rowwise if any(part in o.name.lower() for part in _LIKELY)]
    chosen = rowwise if len(rowwise) == 1 else named
    if len(chosen) == 1:
        return chosen[0].name
    listed = ", ".join(f"'{o.name}' {list(_shape(o, values))}" for o in chosen or rowwise)
    raise InvalidModel(f"several outputs may hold the class scores: {listed}; name one as `output`")


def _shape(output: v1.TensorInfo, values: Mapping[str, Value]) -> tuple[int, ...]:
    return values[output.name].shape if output.name in values else tuple(output.shape)


def _is_row_of_scores(shape: tuple[int, ...], rows: int) -> bool:
    """Says whether a shape is [n, classes], with further axes of size 1."""
    long = [size for size in shape[1:] if size != 1]
    return len(shape) >= _MATRIX and shape[0] in {rows, -1} and len(long) == 1


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
