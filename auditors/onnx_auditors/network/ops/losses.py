"""Losses, which training graphs end in."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from onnx_auditors.network.node import Node
from onnx_auditors.network.registry import Function, operator

_UNUSED = -(2**31)


@operator("NegativeLogLikelihoodLoss", since=13)
def negative_log_likelihood(node: Node) -> Function:
    """Weighted mean, sum or table of -log p(target)."""
    return _loss(node)


@operator("SoftmaxCrossEntropyLoss", since=13)
def softmax_cross_entropy(node: Node) -> Function:
    """The same of scores before the softmax; the second output is the log probabilities."""
    loss, both = _loss(node), node.wants(1)

    def function(scores: Tensor, target: Tensor, weight: Tensor | None = None) -> object:
        logs = torch.log_softmax(scores, 1)
        value = loss(logs, target, weight)
        return (value, logs) if both else value

    return function


def _loss(node: Node) -> Function:
    reduction = node.text("reduction", "mean")
    ignored = node.integer("ignore_index", _UNUSED)

    def function(logs: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        return functional.nll_loss(
            logs, target.long(), weight, ignore_index=ignored, reduction=reduction
        )

    return function
