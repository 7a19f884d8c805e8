"""What the auditors' configurations may say; torch-free, so that a request is checked at once."""

from __future__ import annotations

from google.protobuf.message import Message

from onnx_audit import v1
from onnx_auditors.errors import InvalidConfig

LEAST_BUDGET, LARGEST_BUDGET = 2, 100_000
NORMS = (v1.NORM_L2,)
"""The norms that `distortion` offers."""


def check(config: Message) -> None:
    """Checks an auditor's configuration.

    Raises:
        InvalidConfig: A field is out of range; its path is the metadata's `field`.
    """
    if isinstance(config, v1.DistortionConfig):
        _check_distortion(config)


def _check_distortion(config: v1.DistortionConfig) -> None:
    if config.budget and not LEAST_BUDGET <= config.budget <= LARGEST_BUDGET:
        raise InvalidConfig(
            f"{config.budget} gradient evaluations; allowed is {LEAST_BUDGET} to "
            f"{LARGEST_BUDGET}, and 0 for the default",
            field="budget",
        )
    if config.max_probes < 0:
        raise InvalidConfig(
            f"{config.max_probes} is negative; 0 audits all probes", field="max_probes"
        )
    for norm in config.norms:
        if norm not in NORMS:
            offered = ", ".join(v1.Norm.Name(known) for known in NORMS)
            name = v1.Norm.Name(norm) if norm in v1.Norm.values() else str(norm)
            raise InvalidConfig(f"{name} is not offered; this version has {offered}", field="norms")
    if len(set(config.norms)) < len(config.norms):
        raise InvalidConfig("a norm is given twice", field="norms")
