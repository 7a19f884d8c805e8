"""What the auditors' configurations may say; torch-free, so that a request is checked at once."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from google.protobuf.message import Message

from onnx_audit import v1
from onnx_auditors.errors import InvalidConfig
from onnx_auditors.transfer import config as transfer

LEAST_BUDGET, LARGEST_BUDGET = 2, 100_000
LONGEST_BUDGET = 7 * 24 * 3600.0
"""Seconds that searches may be given at most."""
LEAST_RUNS, MOST_RUNS = 20, 1_000_000
"""Answers that the search without gradients may ask for."""
LEAST_DRAWS, MOST_DRAWS = 8, 1024
"""Draws of noise."""
MOST_HIDDEN = 64
"""Hidden values at most."""
NORMS = (v1.NORM_L2, v1.NORM_LINF, v1.NORM_L1, v1.NORM_L0)
"""The norms that `distortion` offers."""
LIPSCHITZ_NORMS = (v1.NORM_L2, v1.NORM_LINF, v1.NORM_L1)
"""The norms that `lipschitz` offers."""
MOST_RADII, LARGEST_FAILURE = 16, 1e-6
"""Radii of balls, and the chance that a probabilistic bound may fail."""
METHODS = (v1.SEARCH_METHOD_PROJECTED, v1.SEARCH_METHOD_LBFGS, v1.SEARCH_METHOD_PENALISED)
"""The methods of search that `distortion` offers."""
L2_METHODS = (v1.SEARCH_METHOD_LBFGS, v1.SEARCH_METHOD_PENALISED)
"""Those of them that know L2 alone."""
NOISE_KINDS = (v1.NOISE_KIND_GAUSSIAN, v1.NOISE_KIND_UNIFORM, v1.NOISE_KIND_SALT_AND_PEPPER)
"""The kinds of noise that `distortion` offers."""
TARGET_MODES = (
    v1.TARGET_MODE_UNSPECIFIED,
    v1.TARGET_MODE_UNTARGETED,
    v1.TARGET_MODE_LEAST_LIKELY,
    v1.TARGET_MODE_EVERY_OTHER_CLASS,
    v1.TARGET_MODE_GIVEN,
)
UNITS_RANGES = (
    ("directions", 64, 65_536),
    ("rotations", 19, 9_999),
    ("top", 2, 100_000),
    ("max_probes", 1, 2**40),
    ("max_layers", 1, 1_000),
)
"""Fields of `units` with the smallest and largest number that they may be."""
BASES = (
    v1.UNIT_BASIS_PCA,
    v1.UNIT_BASIS_ICA,
    v1.UNIT_BASIS_WHITENED,
    v1.UNIT_BASIS_NONNEGATIVE,
)
"""The further directions that `units` offers."""


def check(config: Message) -> None:
    """Checks an auditor's configuration.

    Raises:
        InvalidConfig: A field is out of range; its path is the metadata's `field`.
    """
    if isinstance(config, v1.DistortionConfig):
        _check_distortion(config)
    if isinstance(config, v1.LipschitzConfig):
        _check_lipschitz(config)
    if isinstance(config, v1.UnitsConfig):
        _check_units(config)
    if isinstance(config, v1.TransferConfig):
        transfer.check(config)


def _check_distortion(config: v1.DistortionConfig) -> None:
    for field, least, most, what in _RANGES:
        number = getattr(config, field)
        if number and not least <= number <= most:
            raise InvalidConfig(
                f"{number} {what}; allowed is {least} to {most}, and 0 for the default",
                field=field,
            )
    if not 0 <= config.budget_seconds <= LONGEST_BUDGET:
        raise InvalidConfig(
            f"{config.budget_seconds:g} s; allowed is up to {LONGEST_BUDGET:,.0f}, and 0 for a "
            "budget in gradient evaluations",
            field="budget_seconds",
        )
    if config.max_probes < 0:
        raise InvalidConfig(
            f"{config.max_probes} is negative; 0 audits all probes", field="max_probes"
        )
    if config.exact_probes < 0:
        raise InvalidConfig(
            f"{config.exact_probes} is negative; 0 looks for no exact optimum",
            field="exact_probes",
        )
    _check_list(v1.Norm, config.norms, NORMS, "norms", "norm")
    _check_list(v1.SearchMethod, config.methods, METHODS, "methods", "method")
    _check_list(v1.NoiseKind, config.noise, NOISE_KINDS, "noise", "kind of noise")
    _check_methods(config)
    _check_targets(config)
    _check_hidden(config)


def _check_lipschitz(config: v1.LipschitzConfig) -> None:
    _check_list(v1.Norm, config.norms, LIPSCHITZ_NORMS, "norms", "norm")
    if config.max_probes < -1:
        raise InvalidConfig(
            f"{config.max_probes} probes; -1 certifies none, and 0 stands for the default",
            field="max_probes",
        )
    radii = list(config.radii)
    rising = all(a < b for a, b in pairwise(radii))
    if len(radii) > MOST_RADII or not rising or not all(0 < r < math.inf for r in radii):
        raise InvalidConfig(
            f"expected at most {MOST_RADII} radii above 0 in rising order, found "
            f"{', '.join(f'{r:g}' for r in radii[:MOST_RADII])}",
            field="radii",
        )
    if not 0 <= config.failure_probability <= LARGEST_FAILURE:
        raise InvalidConfig(
            f"{config.failure_probability:g} is not between 0 and {LARGEST_FAILURE:g}; 0 stands "
            "for the default",
            field="failure_probability",
        )


_RANGES = (
    ("budget", LEAST_BUDGET, LARGEST_BUDGET, "gradient evaluations"),
    ("black_box_runs", LEAST_RUNS, MOST_RUNS, "answers of the model"),
    ("noise_draws", LEAST_DRAWS, MOST_DRAWS, "draws of noise"),
)


def _check_hidden(config: v1.DistortionConfig) -> None:
    names = list(config.hidden_values)
    if not 0 <= config.hidden_count <= MOST_HIDDEN:
        raise InvalidConfig(
            f"{config.hidden_count} hidden values; allowed is 0 to {MOST_HIDDEN}",
            field="hidden_count",
        )
    if names and config.hidden_count:
        raise InvalidConfig(
            "names of hidden values and a number of them exclude each other", field="hidden_count"
        )
    if len(names) > MOST_HIDDEN or len(set(names)) < len(names) or "" in names:
        raise InvalidConfig(
            f"expected at most {MOST_HIDDEN} different names, none of them empty",
            field="hidden_values",
        )


def _check_units(config: v1.UnitsConfig) -> None:
    for field, low, high in UNITS_RANGES:
        value = getattr(config, field)
        if value and not low <= value <= high:
            raise InvalidConfig(
                f"{value} is out of range; allowed is {low:,} to {high:,}, and 0 for the default",
                field=field,
            )
    _check_list(v1.UnitBasis, config.bases, BASES, "bases", "basis")
    for name in config.values:
        if not name or list(config.values).count(name) > 1:
            what = f"value '{name}' is named twice" if name else "the name of a value is empty"
            raise InvalidConfig(what, field="values")
    if config.HasField("embedding"):
        _check_embedding(config.embedding)


def _check_embedding(given: v1.UnitReference) -> None:
    if bool(given.model) == bool(given.features):
        raise InvalidConfig(
            "expected either a model or features of the probes, found "
            + ("both" if given.model else "neither"),
            field="embedding",
        )
    others = [field.name for field, _ in given.ListFields() if field.name != "features"]
    if given.features and others:
        raise InvalidConfig(
            f"is a setting of a model, and features are given; leave out {', '.join(others)}",
            field=f"embedding.{others[0]}",
        )
    height, width = given.input_height, given.input_width
    if bool(height) != bool(width) or not 0 <= min(height, width) <= max(height, width) <= (
        transfer.LARGEST_SIDE
    ):
        raise InvalidConfig(
            f"{height} x {width}; expected both sides, 1 to {transfer.LARGEST_SIDE:,}, or neither",
            field="embedding.input_height",
        )


def _check_list(
    enum: Any,  # noqa: ANN401 - protobuf's wrapper of an enum
    given: Iterable[int],
    offered: Iterable[int],
    field: str,
    what: str,
) -> None:
    seen = set()
    for value in given:
        if value not in offered:
            names = ", ".join(enum.Name(known) for known in offered)
            raise InvalidConfig(
                f"{_name(enum, value)} is not offered; this version has {names}", field=field
            )
        if value in seen:
            raise InvalidConfig(f"a {what} is given twice", field=field)
        seen.add(value)


def _check_methods(config: v1.DistortionConfig) -> None:
    others = [norm for norm in config.norms if norm != v1.NORM_L2]
    for method in config.methods:
        if method in L2_METHODS and others:
            raise InvalidConfig(
                f"{v1.SearchMethod.Name(method)} knows NORM_L2 alone, and "
                f"{v1.Norm.Name(others[0])} is asked for too",
                field="methods",
            )


def _check_targets(config: v1.DistortionConfig) -> None:
    mode = config.target_mode
    if mode not in TARGET_MODES:
        raise InvalidConfig(f"there is no target mode {mode}", field="target_mode")
    given = mode == v1.TARGET_MODE_GIVEN
    if given and not config.HasField("target_class"):
        raise InvalidConfig("TARGET_MODE_GIVEN needs the class to aim at", field="target_class")
    if not given and config.HasField("target_class"):
        raise InvalidConfig(
            "a class to aim at is given; that takes TARGET_MODE_GIVEN", field="target_class"
        )
    if config.target_class < 0:
        raise InvalidConfig(
            f"{config.target_class} is negative; classes count from 0", field="target_class"
        )


def _name(enum: Any, value: int) -> str:  # noqa: ANN401 - protobuf's wrapper of an enum
    return str(enum.Name(value)) if value in enum.values() else str(value)
