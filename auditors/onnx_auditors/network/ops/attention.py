"""Attention and the rotation of queries and keys by their positions."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from onnx_auditors.network.node import Node
from onnx_auditors.network.registry import Function, operator

_HEADS_SPLIT = 4
_BIASED = 2


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[batch, length, heads * size] -> [batch, heads, length, size]."""
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """[batch, heads, length, size] -> [batch, length, heads * size]."""
    return x.transpose(1, 2).flatten(2)


@operator("Attention", since=23)
def attention(node: Node) -> Function:
    """Scaled dot-product attention with masks, caches, shared key heads and a soft cap."""
    node.ignore("softmax_precision")  # computed in the network's floating type in any case
    split = len(node.shape()) == _HEADS_SPLIT
    heads = node.shape()[1] if split else node.integer("q_num_heads")
    shared = node.shape(1)[1] if split else node.integer("kv_num_heads")
    node.ignore("q_num_heads", "kv_num_heads")
    size = node.shape()[-1] if split else node.shape()[-1] // heads
    scale = node.number("scale", 1 / math.sqrt(size))
    cap, causal = node.number("softcap", 0.0), bool(node.integer("is_causal", 0))
    windows = (node.integer("left_window_size", -1), node.integer("right_window_size", -1))
    mode = node.integer("qk_matmul_output_mode", 0)
    if mode == _BIASED and causal and node.wants(3):
        node.refuse("ONNX Runtime shows masked scores as its lowest number, the standard as -inf")

    def function(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None = None,
        past_key: Tensor | None = None,
        past_value: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        if not split:
            query, key, value = (
                split_heads(query, heads), split_heads(key, shared), split_heads(value, shared)
            )  # fmt: skip
        offset: int | Tensor = 0
        if past_key is not None and past_value is not None:
            key, value = torch.cat([past_key, key], 2), torch.cat([past_value, value], 2)
            offset = past_key.shape[2]
        elif lengths is not None:
            offset = lengths.reshape(-1, 1, 1, 1) - query.shape[2]
        bias = _bias(query, key, mask, causal=causal, windows=windows, offset=offset)
        if lengths is not None:
            places = torch.arange(key.shape[2], device=key.device)
            bias = _where(places < lengths.reshape(-1, 1, 1, 1), bias)
        repeated_key = key.repeat_interleave(heads // shared, 1)
        repeated_value = value.repeat_interleave(heads // shared, 1)
        scores = (query * scale) @ repeated_key.mT
        capped = cap * torch.tanh(scores / cap) if cap else scores
        biased = capped + bias
        probabilities = masked_softmax(biased, bias)
        y = probabilities @ repeated_value
        shown = (scores, capped, biased, probabilities)[mode]
        return (y if split else join_heads(y)), key, value, shown

    return function


def masked_softmax(scores: Tensor, bias: Tensor) -> Tensor:
    """Softmax over the last axis; 0 in rows where the bias allows nothing."""
    nothing = (bias == -torch.inf).all(-1, keepdim=True)
    return torch.where(nothing, 0.0, torch.softmax(torch.where(nothing, 0.0, scores), -1))


def _where(allowed: Tensor, bias: Tensor) -> Tensor:
    return torch.where(allowed, bias, -torch.inf)


def _bias(
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    *,
    causal: bool,
    windows: tuple[int, int],
    offset: int | Tensor,
) -> Tensor:
    """Returns what is added to the scores: -inf where a query must not look."""
    rows, columns = query.shape[2], key.shape[2]
    bias = query.new_zeros(rows, columns)
    if mask is not None:
        if mask.dtype == torch.bool:
            mask = torch.where(mask, 0.0, -torch.inf).to(query.dtype)
        missing = columns - mask.shape[-1]
        bias = bias + torch.nn.functional.pad(mask, [0, missing], value=-torch.inf)
    ahead = torch.arange(columns, device=key.device) - (
        torch.arange(rows, device=key.device)[:, None] + offset
    )
    left, right = windows
    if causal:
        bias = _where(ahead <= 0, bias)
    if left >= 0:
        bias = _where(ahead >= -left, bias)
    if right >= 0:
        bias = _where(ahead <= right, bias)
    return bias


@operator("RotaryEmbedding", since=23)
def rotary_embedding(node: Node) -> Function:
    """Rotates pairs of entries by angles that grow with the position."""
    split = len(node.shape()) == _HEADS_SPLIT
    interleaved = bool(node.integer("interleaved", 0))
    heads = node.integer("num_heads", 0)
    size = node.shape()[-1] if split else node.shape()[-1] // max(heads, 1)
    rotated = node.integer("rotary_embedding_dim", 0) or size
    if not split and not heads:
        node.refuse("num_heads is missing")

    def function(
        x: Tensor, cosines: Tensor, sines: Tensor, positions: Tensor | None = None
    ) -> Tensor:
        h = x if split else split_heads(x, heads)
        if positions is not None:
            cosines, sines = cosines[positions], sines[positions]
        cosines, sines = cosines.unsqueeze(1), sines.unsqueeze(1)
        turned, rest = h[..., :rotated], h[..., rotated:]
        if interleaved:
            a, b = turned[..., 0::2], turned[..., 1::2]
        else:
            a, b = turned.chunk(2, -1)
        real, imaginary = cosines * a - sines * b, sines * a + cosines * b
        if interleaved:
            turned = torch.stack([real, imaginary], -1).flatten(-2)
        else:
            turned = torch.cat([real, imaginary], -1)
        y = torch.cat([turned, rest], -1)
        return y if split else join_heads(y)

    return function


_UPDATE_RULES = {"linear": (False, False), "gated": (True, False), "delta": (False, True),
                 "gated_delta": (True, True)}  # fmt: skip


@operator("LinearAttention", since=27)
def linear_attention(node: Node) -> Function:
    """Attention without softmax: a state that each step decays, corrects, and adds to."""
    node.ignore("chunk_size")  # a hint for speed
    heads, shared = node.integer("q_num_heads"), node.integer("kv_num_heads")
    gated, corrected = _UPDATE_RULES[node.text("update_rule", "gated_delta")]
    size = node.shape()[-1] // heads
    scale = node.number("scale", 0.0) or 1 / math.sqrt(size)
    length, width = node.shape()[1], node.shape(2)[-1] // shared

    def function(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        past: Tensor | None = None,
        decay: Tensor | None = None,
        beta: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        q = split_heads(query, heads) * scale
        k, v = split_heads(key, shared), split_heads(value, shared)
        state = q.new_zeros(q.shape[0], shared, size, width) if past is None else past
        fade = split_heads(decay, shared).exp() if decay is not None else None
        share = split_heads(beta, beta.shape[-1]) if beta is not None else None
        steps = []
        for t in range(length):
            if gated and fade is not None:
                state = state * fade[:, :, t, :, None]
            entry = v[:, :, t]
            if corrected and share is not None:
                known = (k[:, :, t, None] @ state).squeeze(-2)
                entry = share[:, :, t] * (entry - known)
            state = state + k[:, :, t, :, None] * entry[..., None, :]
            read = state.repeat_interleave(heads // shared, 1)
            steps.append((q[:, :, t, None] @ read).squeeze(-2))
        return join_heads(torch.stack(steps, 2)), state

    return function


@operator("CausalConvWithState", since=27)
def causal_convolution(node: Node) -> Function:
    """Convolution of each channel alone over past entries, which a state carries on."""
    activation = node.text("activation", "none")
    channels, taps = node.shape(1)[0], node.shape(1)[2]
    if activation not in {"none", "silu", "swish"}:
        node.refuse(f"activation {activation} is not covered")

    def function(
        x: Tensor, weight: Tensor, bias: Tensor | None = None, past: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        before = x.new_zeros(x.shape[0], channels, taps - 1) if past is None else past
        padded = torch.cat([before, x], 2)
        y = torch.nn.functional.conv1d(padded, weight, bias, groups=channels)
        y = y if activation == "none" else torch.nn.functional.silu(y)
        return y, padded[:, :, padded.shape[2] - taps + 1 :]

    return function
