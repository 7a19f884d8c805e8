"""Auditor configurations and input specs from YAML files and command-line text.

Everything unknown is an error that names the nearest known name: a setting that is silently
ignored would change what a report means.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import yaml
from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from onnx_audit import v1
from onnx_audit.errors import ConfigError
from onnx_audit.requests import unknown_name

SPEC_KEYS: Final = tuple(field.name for field in v1.InputSpec.DESCRIPTOR.fields)
_SPEC_LISTS: Final = ("lower", "upper", "mean", "std")
_SPEC_ENUMS: Final = {
    "probe_layout": (v1.Layout.DESCRIPTOR, "LAYOUT_"),
    "model_layout": (v1.Layout.DESCRIPTOR, "LAYOUT_"),
    "channel_order": (v1.ChannelOrder.DESCRIPTOR, "CHANNEL_ORDER_"),
}
BUDGETS: Final = {"quick": 100, "standard": 500, "thorough": 2000}
"""Names of budgets of `distortion`, and their gradient evaluations."""


_SECONDS: Final = {"s": 1, "m": 60, "h": 3600}
_LASTING: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)([smh])", re.ASCII)


def budget(value: object) -> v1.DistortionConfig:
    """A configuration with a budget, given by its name, as a number, or as a time such as "10m".

    Raises:
        ConfigError: It is none of these.
    """
    text = str(value).strip()
    if text in BUDGETS:
        return v1.DistortionConfig(budget=BUDGETS[text])
    if text.isascii() and text.isdigit() and int(text):
        return v1.DistortionConfig(budget=int(text))
    lasting = _LASTING.fullmatch(text)
    if lasting is None or not float(lasting[1]):
        raise ConfigError(
            f"budget is {value!r}; expected {', '.join(BUDGETS)}, a number of gradient "
            "evaluations, or a time such as 90s, 10m or 2h"
        )
    return v1.DistortionConfig(budget_seconds=float(lasting[1]) * _SECONDS[lasting[2]])


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ConfigError: The file is missing, is not YAML, or holds something else.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: not a readable YAML file: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected fields with values, found {type(content).__name__}")
    return content


def load_auditor_configs(path: Path) -> v1.AuditorConfigs:
    """Reads the configurations of auditors from YAML, in the shape of proto3 JSON.

    An auditor without settings, as in `lipschitz: {}`, runs with its defaults. The budget of
    distortion may be a name of `BUDGETS`, or a time.

    Raises:
        ConfigError: A field is unknown or has a value of the wrong kind.
    """
    content = {name: value or {} for name, value in read_yaml(path).items()}
    _require_known(content, v1.AuditorConfigs.DESCRIPTOR, str(path), "")
    distortion = content.get("distortion", {})
    if isinstance(distortion.get("budget"), str):
        try:
            given = json_format.MessageToDict(
                budget(distortion["budget"]), preserving_proto_field_name=True
            )
            kept = {name: value for name, value in distortion.items() if name != "budget"}
            content["distortion"] = kept | given
        except ConfigError as error:
            raise ConfigError(f"{path}: distortion.{error}") from error
    try:
        return json_format.ParseDict(content, v1.AuditorConfigs())
    except json_format.ParseError as error:
        raise ConfigError(f"{path}: {error}") from error


def _require_known(content: object, message: Descriptor, where: str, prefix: str) -> None:
    """Raises a ConfigError for the first field or enum value that the schema does not know."""
    if not isinstance(content, Mapping):
        raise ConfigError(
            f"{where}: {prefix.rstrip('.')} is {content!r}; expected the fields of "
            f"{message.name}: {', '.join(message.fields_by_name)}"
        )
    for name, value in content.items():
        field = message.fields_by_name.get(name) or message.fields_by_camelcase_name.get(name)
        if field is None:
            unknown = unknown_name("field", f"{name}", list(message.fields_by_name))
            raise ConfigError(f"{where}: in {prefix.rstrip('.') or 'the file'}: {unknown}")
        for item in value if isinstance(value, list) else [value]:
            if field.message_type is not None and item is not None:
                _require_known(item, field.message_type, where, f"{prefix}{name}.")
            elif field.enum_type is not None:
                _require_enum(item, field, where, prefix)


def _require_enum(value: object, field: FieldDescriptor, where: str, prefix: str) -> None:
    known = field.enum_type.values_by_name if field.enum_type is not None else {}
    if value not in known:
        raise ConfigError(
            f"{where}: {prefix}{field.name}: {unknown_name('value', str(value), list(known))}"
        )


def input_spec(settings: Mapping[str, Any], where: str) -> v1.InputSpec:
    """An input spec from settings under its field names.

    Numbers may be given as text, lists as text with commas; layouts and the channel order by their
    short names ("chw", "reversed") or in full.

    Args:
        settings: The settings; those that are None are left out.
        where: What error messages call their source.

    Raises:
        ConfigError: A key is unknown or a value has the wrong form.
    """
    spec = v1.InputSpec()
    for key, value in settings.items():
        if key not in SPEC_KEYS:
            raise ConfigError(f"{where}: {unknown_name('key', str(key), SPEC_KEYS)}")
        if value is None:
            continue
        label = f"{where}: {key}"
        if key in _SPEC_LISTS:
            getattr(spec, key).extend(_numbers(value, label))
        elif key in _SPEC_ENUMS:
            setattr(spec, key, _enum_number(value, *_SPEC_ENUMS[key], label))
        elif key == "divisor":
            spec.divisor = _number(value, label)
        else:
            spec.input_name = str(value)
    return spec


def load_input_spec(path: Path) -> v1.InputSpec:
    """Reads an input spec from YAML with the keys of `v1.InputSpec`.

    Raises:
        ConfigError: A key is unknown or a value has the wrong form.
    """
    return input_spec(read_yaml(path), str(path))


def merged(base: v1.InputSpec, stronger: v1.InputSpec) -> v1.InputSpec:
    """A spec with the fields of `stronger`, and those of `base` where it has none."""
    fields = {field.name: value for field, value in base.ListFields()}
    # Lists stand in for one another; MergeFrom would join them.
    fields |= {field.name: value for field, value in stronger.ListFields()}
    return v1.InputSpec(**fields)


def _number(value: object, label: str) -> float:
    try:
        number = float(value) if isinstance(value, (str, int, float)) else math.nan
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ConfigError(f"{label} is {value!r}; expected a number")
    return number


def _numbers(value: object, label: str) -> list[float]:
    items: Sequence[object]
    if isinstance(value, str):
        items = value.split(",")
    else:
        items = value if isinstance(value, (list, tuple)) else [value]
    if not items:
        raise ConfigError(f"{label} is empty; expected one number, or one per channel")
    return [_number(item, label) for item in items]


def _enum_number(value: object, enum: EnumDescriptor, prefix: str, label: str) -> int:
    short = str(value).upper().replace("-", "_").removeprefix(prefix)
    known = {name.removeprefix(prefix): entry.number for name, entry in enum.values_by_name.items()}
    if short not in known or not known[short]:
        names = [name.lower() for name, number in known.items() if number]
        raise ConfigError(f"{label}: {unknown_name('value', str(value), names)}")
    return known[short]
