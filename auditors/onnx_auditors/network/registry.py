"""The operators that a network can be formed of.

An operator is one function from its node to a torch function:

    @operator("LeakyRelu", since=6)
    def leaky_relu(node: Node) -> Function:
        slope = node.number("alpha", 0.01)
        return lambda x: F.leaky_relu(x, slope)

It reads attributes, and those inputs that must be constant, through the node; the torch function
gets the other inputs. What the function does not cover it must refuse: an attribute that nobody
read, an input too many and an output that is not computed are refused for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from onnx_auditors.network.node import Node

Function = Callable[..., Any]
"""Takes the tensors of a node's inputs and returns its output, or a tuple of its outputs."""


@dataclass(frozen=True)
class Operator:
    """An operator.

    Attributes:
        bind: Returns the torch function of a node.
        since: First opset that has the meaning which `bind` implements.
        surrogate: Whether its gradients are a straight-through estimator's: the true ones are 0.
        carries: Whether it computes on integers held as floats, which keep the gradient of what
            was quantised; other operators get such values as true integers.
    """

    bind: Callable[[Node], Function]
    since: int
    surrogate: bool = False
    carries: bool = False


OPERATORS: dict[str, Operator] = {}
"""The operators by name; those of other domains than the standard one as 'domain.name'."""

MICROSOFT = "com.microsoft"


def find(domain: str, op_type: str) -> Operator | None:
    """Returns an operator; None if there is none."""
    return OPERATORS.get(op_type if domain in {"", "ai.onnx"} else f"{domain}.{op_type}")


def operator(
    *names: str, since: int = 1, domain: str = "", surrogate: bool = False, carries: bool = False
) -> Callable[[Callable[[Node], Function]], Callable[[Node], Function]]:
    """Registers a function from node to torch function under the names of operators."""

    def register(bind: Callable[[Node], Function]) -> Callable[[Node], Function]:
        for name in names:
            key = f"{domain}.{name}" if domain else name
            OPERATORS[key] = Operator(bind, since, surrogate, carries)
        return bind

    return register


def plain(names: dict[str, Callable[..., torch.Tensor]], since: int = 1) -> None:
    """Registers operators without attributes that are a torch function as it is."""
    for name, function in names.items():
        OPERATORS[name] = Operator(lambda _, function=function: function, since)  # type: ignore[misc] # mypy does not infer lambdas with defaults
