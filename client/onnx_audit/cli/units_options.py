"""Options of the auditor `units`."""

from __future__ import annotations

import functools
from typing import Any, Final

import click

from onnx_audit import v1
from onnx_audit.cli.options import CommandT
from onnx_audit.errors import ConfigError

_BASES: Final = {
    "pca": v1.UNIT_BASIS_PCA,
    "ica": v1.UNIT_BASIS_ICA,
    "whitened": v1.UNIT_BASIS_WHITENED,
    "nonnegative": v1.UNIT_BASIS_NONNEGATIVE,
}


def units_options(command: CommandT) -> CommandT:
    """Adds the options of units, joined into the parameter `units`."""

    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as click calls it
        given = {field: kwargs.pop(flag) for flag, field in _FLAGS.items()}
        config = v1.UnitsConfig(**{name: value for name, value in given.items() if value})
        return command(*args, units=config, **kwargs)

    for option in reversed(_OPTIONS):
        wrapper = option(wrapper)
    return wrapper  # type: ignore[return-value] # the decorators keep what the caller sees


def apply_units(options: v1.UnitsConfig, configs: v1.AuditorConfigs) -> None:
    """Puts options in the place of a configuration's values.

    Raises:
        ConfigError: An option is given, and units does not run.
    """
    fields = {field.name: value for field, value in options.ListFields()}
    if not fields:
        return
    if not configs.HasField("units"):
        flag = next(flag for flag, field in _FLAGS.items() if field in fields)
        raise ConfigError(f"--{flag.replace('_', '-')} is a setting of units, which does not run")
    kept = {field.name: value for field, value in configs.units.ListFields()}
    configs.units.CopyFrom(v1.UnitsConfig(**(kept | fields)))


def _names(
    _context: click.Context, _parameter: click.Parameter, value: str | None
) -> list[str] | None:
    if value is None:
        return None
    names = [name.strip() for name in value.split(",") if name.strip()]
    if not names:
        raise click.BadParameter(f"{value!r}; expected names of values")
    return names


def _bases(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> list[v1.UnitBasis.ValueType] | None:
    names = _names(context, parameter, value)
    if names is None:
        return None
    if any(name not in _BASES for name in names):
        raise click.BadParameter(f"{value!r}; expected some of {', '.join(_BASES)}")
    return [_BASES[name] for name in names]


_FLAGS: Final = {
    "unit_values": "values",
    "unit_directions": "directions",
    "unit_rotations": "rotations",
    "unit_top": "top",
    "unit_layers": "max_layers",
    "unit_bases": "bases",
    "untrained_twin": "untrained_twin",
}
_OPTIONS: Final = (
    click.option(
        "--unit-values",
        metavar="NAME[,NAME...]",
        callback=_names,
        help="Values of the graph whose units are looked at.  [default: the layers]",
    ),
    click.option(
        "--unit-directions",
        metavar="N",
        type=click.IntRange(min=64, max=65_536),
        help="Random directions to compare units with.  [default: 1024]",
    ),
    click.option(
        "--unit-rotations",
        metavar="N",
        type=click.IntRange(min=19, max=9_999),
        help="Rotated bases, the null of the index.  [default: 99]",
    ),
    click.option(
        "--unit-top",
        metavar="N",
        type=click.IntRange(min=2, max=100_000),
        help="Top inputs that speak for a unit.  [default: 1 % of the probes, at least 9]",
    ),
    click.option(
        "--unit-layers",
        metavar="N",
        type=click.IntRange(min=1, max=1_000),
        help="Layers at most, where no values are named.  [default: 12]",
    ),
    click.option(
        "--unit-bases",
        metavar="NAME[,NAME...]",
        callback=_bases,
        help="Further directions: pca, ica; whitened and nonnegative are descriptive only.  "
        "[default: pca,ica]",
    ),
    click.option(
        "--untrained-twin",
        is_flag=True,
        help="Measure the units of the same graph with fresh weights beside it.",
    ),
)
