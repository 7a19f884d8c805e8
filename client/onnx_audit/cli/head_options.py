"""Options of the linear head, which makes a classifier of a model without classes."""

from __future__ import annotations

from typing import Any, Final

import click

from onnx_audit import v1
from onnx_audit.cli.figures import number
from onnx_audit.cli.options import CommandT, joined_options

CHOOSE: Final = "auto"
_METHODS: Final = {"ridge": v1.HEAD_METHOD_RIDGE, "softmax": v1.HEAD_METHOD_SOFTMAX}


def head_options(command: CommandT) -> CommandT:
    """Adds the options of the linear head, joined into the parameter `linear_head`."""
    return joined_options(command, "linear_head", _OPTIONS, _taken)


def _taken(given: dict[str, Any]) -> v1.LinearHeadConfig | None:
    value, method, l2 = (given.pop(name) for name in ("head", "head_method", "head_l2"))
    if value is None:
        if method is not None or l2 is not None:
            flag = "--head-method" if method is not None else "--head-l2"
            raise click.UsageError(f"{flag} is a setting of the linear head; add --head")
        return None
    head = v1.LinearHeadConfig(value="" if value == CHOOSE else value, l2=l2 or 0)
    head.method = _METHODS.get(method, v1.HEAD_METHOD_UNSPECIFIED)
    return head


_OPTIONS: Final = (
    click.option(
        "--head",
        metavar="VALUE",
        help="For a model without classes, such as an autoencoder: fit a linear classifier on this "
        f"value of its graph from the labelled probes, and audit the two together; {CHOOSE} "
        "chooses the value.",
    ),
    click.option(
        "--head-method",
        type=click.Choice(list(_METHODS)),
        help="Least squares in closed form, or cross-entropy by L-BFGS.  [default: ridge]",
    ),
    click.option(
        "--head-l2",
        metavar="N",
        type=click.FloatRange(min=0, min_open=True),
        help="Weight of the squared norm of the head's weights.  [default: 0.001]",
    ),
)


def config_text(head: v1.LinearHeadConfig) -> str:
    """What is asked of a head in a line."""
    value = head.value or "a value that the service chooses"
    method = v1.HeadMethod.Name(head.method or v1.HEAD_METHOD_RIDGE)
    parts = [f"on {value}", method.removeprefix("HEAD_METHOD_").lower()]
    return ", ".join(parts + ([f"l2 {number(head.l2)}"] if head.l2 else []))
