"""Recurrent networks, unrolled over their steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from onnx_auditors.network.node import Node
from onnx_auditors.network.registry import Function, operator

_Activation = Callable[[Tensor], Tensor]
_State = tuple[Tensor, ...]
_Step = Callable[[Tensor, Tensor, "_Extra", _State], _State]


@dataclass(frozen=True)
class _Extra:
    """What some cells have besides their weights.

    Attributes:
        rest: GRU's recurrent bias of the hidden gate, [size].
        peephole: LSTM's weights from the cell to its gates, [3 * size].
    """

    rest: Tensor
    peephole: Tensor


_PLAIN: dict[str, _Activation] = {
    "sigmoid": torch.sigmoid, "tanh": torch.tanh, "relu": torch.relu,
    "softsign": functional.softsign, "softplus": functional.softplus,
}  # fmt: skip
_DEFAULTS = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}


def _activations(node: Node, directions: int) -> list[list[_Activation]]:
    default = _DEFAULTS[node.op_type]
    given = [n.decode() for n in node.value("activations")] if node.has("activations") else []
    names = given or default * directions
    alphas = list(node.value("activation_alpha")) if node.has("activation_alpha") else []
    betas = list(node.value("activation_beta")) if node.has("activation_beta") else []
    clip, each = node.number("clip", 0.0), len(default)
    found = []
    for i, name in enumerate(names):
        function = _activation(node, name.lower(), alphas, betas)
        # ONNX Runtime clips what goes into gates, not the cell on its way out of an LSTM.
        of_cell = node.op_type == "LSTM" and i % each == each - 1
        found.append(_clipped(function, clip) if clip and not of_cell else function)
    return [found[i * each : (i + 1) * each] for i in range(directions)]


def _clipped(function: _Activation, clip: float) -> _Activation:
    return lambda x: function(x.clamp(-clip, clip))


def _activation(node: Node, name: str, alphas: list[float], betas: list[float]) -> _Activation:
    """Takes the next alpha and beta off the lists where the function has them."""
    if name in _PLAIN:
        return _PLAIN[name]
    if name == "leakyrelu":
        slope = alphas.pop(0) if alphas else 0.01
        return lambda x: functional.leaky_relu(x, slope)
    if name == "elu":
        size = alphas.pop(0) if alphas else 1.0
        return lambda x: functional.elu(x, size)
    if name != "hardsigmoid":
        node.refuse(f"activation {name} is not covered")
    factor = alphas.pop(0) if alphas else 0.2
    shift = betas.pop(0) if betas else 0.5
    return lambda x: torch.clamp(factor * x + shift, 0, 1)


def _lstm_step(node: Node, activations: list[_Activation]) -> _Step:
    f, g, h = activations
    coupled = bool(node.integer("input_forget", 0))

    def step(x: Tensor, r: Tensor, extra: _Extra, state: _State) -> _State:
        hidden, cell = state
        i, o, forget, c = (x + hidden @ r.mT).chunk(4, -1)
        p_i, p_o, p_f = extra.peephole.chunk(3, -1)
        i = f(i + p_i * cell)
        forget = 1 - i if coupled else f(forget + p_f * cell)
        cell = forget * cell + i * g(c)
        return f(o + p_o * cell) * h(cell), cell

    return step


def _gru_step(node: Node, activations: list[_Activation]) -> _Step:
    f, g = activations
    after = bool(node.integer("linear_before_reset", 0))

    def step(x: Tensor, r: Tensor, extra: _Extra, state: _State) -> _State:
        (hidden,) = state
        size = hidden.shape[-1]
        gates = f(x[..., : 2 * size] + hidden @ r[: 2 * size].mT)
        update, reset = gates.chunk(2, -1)
        inner, own = r[2 * size :], x[..., 2 * size :]
        if after:
            new = g(own + reset * (hidden @ inner.mT + extra.rest))
        else:
            new = g(own + (reset * hidden) @ inner.mT + extra.rest)
        return ((1 - update) * new + update * hidden,)

    return step


def _rnn_step(node: Node, activations: list[_Activation]) -> _Step:  # noqa: ARG001 - as the others
    (f,) = activations

    def step(x: Tensor, r: Tensor, _: _Extra, state: _State) -> _State:
        return (f(x + state[0] @ r.mT),)

    return step


_STEPS = {"LSTM": (_lstm_step, 4), "GRU": (_gru_step, 3), "RNN": (_rnn_step, 1)}


@operator("LSTM", "GRU", "RNN", since=7)
def recurrent(node: Node) -> Function:
    """A recurrent layer, in one or both directions; sequences may have lengths of their own."""
    make, gates = _STEPS[node.op_type]
    directions, _, size = node.shape(2)
    node.integer("hidden_size", size)
    batch_first = bool(node.integer("layout", 0))
    direction = node.text("direction", "forward")
    if (direction == "bidirectional") != (directions == 2):  # noqa: PLR2004 - both of them
        node.refuse(f"direction {direction} does not fit {directions} sets of weights")
    steps = [make(node, a) for a in _activations(node, directions)]
    states = 2 if node.op_type == "LSTM" else 1
    length = node.shape()[1 if batch_first else 0]
    node.check_turns(length * directions)

    def function(
        x: Tensor, w: Tensor, r: Tensor, b: Tensor | None = None,
        lengths: Tensor | None = None, *given: Tensor | None,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        x = x.transpose(0, 1) if batch_first else x
        bias = x.new_zeros(directions, 2 * gates * size) if b is None else b
        peepholes = given[states] if len(given) > states else None
        outputs, finals = [], []
        for d in range(directions):
            start = tuple(
                _initial(given[s] if s < len(given) else None, d, x, size, batch_first=batch_first)
                for s in range(states)
            )
            own, rest = _biases(node.op_type, bias[d], gates, size)
            peephole = x.new_zeros(3 * size) if peepholes is None else peepholes[d]
            cell = partial(_cell, steps[d], r[d], _Extra(rest, peephole))
            backwards = direction == "reverse" or d == 1
            inputs = x @ w[d].mT + own
            y, final = _unroll(cell, inputs, start, lengths, length, backwards=backwards)
            outputs.append(y)
            finals.append(final)
        y = torch.stack(outputs, 1)
        last = [torch.stack([final[s] for final in finals]) for s in range(states)]
        if batch_first:
            return (y.permute(2, 0, 1, 3), *(s.transpose(0, 1) for s in last))
        return (y, *last)

    return function


def _cell(step: _Step, r: Tensor, extra: _Extra, x: Tensor, state: _State) -> _State:
    return step(x, r, extra, state)


def _biases(op_type: str, bias: Tensor, gates: int, size: int) -> tuple[Tensor, Tensor]:
    """Returns the biases added to the input, and what GRU keeps for its hidden gate."""
    own, recurrent_bias = bias.chunk(2)
    if op_type != "GRU":
        return own + recurrent_bias, own[:0]
    early = torch.cat([recurrent_bias[: 2 * size], torch.zeros_like(own[2 * size :])])
    return own + early, recurrent_bias[(gates - 1) * size :]


def _initial(given: Tensor | None, d: int, x: Tensor, size: int, *, batch_first: bool) -> Tensor:
    if given is None:
        return x.new_zeros(x.shape[1], size)
    return given[:, d] if batch_first else given[d]


def _unroll(
    step: Callable[[Tensor, _State], _State],
    inputs: Tensor,
    state: _State,
    lengths: Tensor | None,
    length: int,
    *,
    backwards: bool,
) -> tuple[Tensor, _State]:
    """Runs the steps; a sequence that has ended gives 0 and keeps its state."""
    outputs: list[Tensor] = []
    for t in reversed(range(length)) if backwards else range(length):
        new = step(inputs[t], state)
        shown = new[0]
        if lengths is not None:
            alive = (t < lengths).unsqueeze(-1)
            shown = torch.where(alive, shown, 0.0)
            new = tuple(torch.where(alive, a, b) for a, b in zip(new, state, strict=True))
        state = new
        outputs.append(shown)
    if backwards:
        outputs.reverse()
    return torch.stack(outputs), state
