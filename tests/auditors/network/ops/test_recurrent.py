"""Recurrent operators beside ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.auditors.network.ops.compare import FEW, Array, check, draw, model_of

STEPS, BATCH, WIDTH, SIZE = 4, 3, 5, 2
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
DEFAULTS = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}


@pytest.mark.parametrize("op_type", list(GATES))
@FEW
@given(
    direction=st.sampled_from(["forward", "reverse", "bidirectional"]),
    bias=st.booleans(),
    lengths=st.booleans(),
    start=st.booleans(),
    peephole=st.booleans(),
    linear=st.sampled_from([0, 1]),
    clip=st.sampled_from([None, 0.5]),
    activations=st.sampled_from([None, "Relu", "HardSigmoid", "LeakyRelu"]),
)
def test_recurrent(
    op_type: str,
    direction: str,
    bias: bool,
    lengths: bool,
    start: bool,
    peephole: bool,
    linear: int,
    clip: float | None,
    activations: str | None,
) -> None:
    """All three agree in every direction, with lengths, states, peepholes and activations."""
    directions = 2 if direction == "bidirectional" else 1
    gates = GATES[op_type]
    inputs: list[Array | None] = [
        draw(STEPS, BATCH, WIDTH), draw(directions, gates * SIZE, WIDTH, seed=1),
        draw(directions, gates * SIZE, SIZE, seed=2),
        draw(directions, 2 * gates * SIZE, seed=3) if bias else None,
        np.array([4, 2, 3], np.int32) if lengths else None,
        draw(directions, BATCH, SIZE, seed=4) if start else None,
    ]  # fmt: skip
    outputs = ["y", "last"]
    attributes: dict[str, Any] = {"hidden_size": SIZE, "direction": direction}
    if op_type == "LSTM":
        inputs += [draw(directions, BATCH, SIZE, seed=5) if start else None,
                   draw(directions, 3 * SIZE, seed=6) if peephole else None]  # fmt: skip
        outputs.append("cell")
    if op_type == "GRU":
        attributes["linear_before_reset"] = linear
    if clip is not None:
        attributes["clip"] = clip
    if activations is not None:
        names = [*DEFAULTS[op_type][:-1], activations]
        attributes["activations"] = names * directions
        # One pair for each activation that takes one, in their order.
        if activations == "LeakyRelu":
            attributes["activation_alpha"] = [0.2] * directions
        if activations == "HardSigmoid":
            attributes["activation_alpha"] = [0.3] * directions
            attributes["activation_beta"] = [0.4] * directions
    model = model_of(op_type, inputs, constant=[1, 2, 3], outputs=outputs, **attributes)
    check(model, inputs, 1e-5)
