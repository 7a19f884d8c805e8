"""Options of the auditor `units`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import click

from onnx_audit import v1
from onnx_audit.arrays import SUFFIXES, require_array_file, unit_arrays
from onnx_audit.cli.options import CommandT, chosen, joined_options, listed
from onnx_audit.errors import ConfigError
from onnx_audit.requests import is_content_name

_BASES: Final = {
    "pca": v1.UNIT_BASIS_PCA,
    "ica": v1.UNIT_BASIS_ICA,
    "whitened": v1.UNIT_BASIS_WHITENED,
    "nonnegative": v1.UNIT_BASIS_NONNEGATIVE,
}


def units_options(command: CommandT) -> CommandT:
    """Adds the options of units, joined into the parameter `units`."""
    return joined_options(command, "units", _OPTIONS, _taken)


def _taken(given: dict[str, Any]) -> v1.UnitsConfig:
    values = {field: given.pop(flag) for flag, field in _FLAGS.items()}
    return v1.UnitsConfig(**{name: value for name, value in values.items() if value})


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
    if options.HasField("embedding"):
        # A file may say how probes go into the model, and an option which model it is.
        fields["embedding"] = v1.UnitReference()
        fields["embedding"].CopyFrom(configs.units.embedding)
        fields["embedding"].MergeFrom(options.embedding)
    configs.units.CopyFrom(v1.UnitsConfig(**(kept | fields)))
    for named in unit_arrays(configs.units).values():
        if not is_content_name(named, "blobs"):
            require_array_file(Path(named))


def _embedding(
    _context: click.Context, _parameter: click.Parameter, value: str | None
) -> v1.UnitReference | None:
    if value is None:
        return None
    if value.lower().endswith(SUFFIXES) or is_content_name(value, "blobs"):
        return v1.UnitReference(features=value)
    # Names of values may hold colons, and so may paths: the first part that is a model counts.
    parts = value.split(":")
    for end in range(1, len(parts) + 1):
        model = ":".join(parts[:end])
        if is_content_name(model, "models") or Path(model).is_file():
            return v1.UnitReference(model=model, value=":".join(parts[end:]))
    raise click.BadParameter(
        f"{value!r}: there is no such file; expected MODEL.onnx[:VALUE], models/{{sha256}}[:VALUE] "
        f"or features in {', '.join(SUFFIXES)}"
    )


_FLAGS: Final = {
    "unit_values": "values",
    "unit_directions": "directions",
    "unit_rotations": "rotations",
    "unit_top": "top",
    "unit_layers": "max_layers",
    "unit_bases": "bases",
    "untrained_twin": "untrained_twin",
    "concepts": "concepts",
    "masks": "masks",
    "embedding": "embedding",
    "directions": "given_directions",
}
_OPTIONS: Final = (
    click.option(
        "--unit-values",
        metavar="NAME[,NAME...]",
        callback=listed("names of values"),
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
        callback=chosen(_BASES),
        help="Further directions: pca, ica; whitened and nonnegative are descriptive only.  "
        "[default: pca,ica]",
    ),
    click.option(
        "--untrained-twin",
        is_flag=True,
        help="Measure the units of the same graph with fresh weights beside it.",
    ),
    click.option(
        "--concepts",
        metavar="FILE",
        help="Whether probes show concepts, 0 or 1, [probes, concepts], to judge units by in the "
        "place of labels; .npz, .npy or .safetensors.",
    ),
    click.option(
        "--masks",
        metavar="FILE",
        help="Which pixels of the probes show concepts, 0 or 1, [probes, concepts, height, width].",
    ),
    click.option(
        "--embedding",
        metavar="FILE",
        callback=_embedding,
        help="Reference embedding of coherence: MODEL.onnx[:VALUE], another model and the name of "
        "a value of it (by default what its last linear layer reads), or a file of features "
        "[probes, any]. An input spec goes into --config.",
    ),
    click.option(
        "--directions",
        metavar="FILE",
        help="Directions to show beside units, such as a dictionary: .npz or .safetensors with a "
        "matrix [any, units] under the name of each value.",
    ),
)
