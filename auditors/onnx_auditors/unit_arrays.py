"""Arrays that a configuration of `units` names: concepts, masks, features, directions. No torch.

They are safetensors files. Names, element types and shapes are known from the header, so that a
request is checked at once; what they hold is checked when they are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_audit import v1
from onnx_auditors.errors import InvalidConfig
from onnx_auditors.tensor_files import Header, UnreadableTensorsError

CONCEPTS, MASKS, FEATURES, DIRECTIONS = (
    "concepts",
    "masks",
    "embedding.features",
    "given_directions",
)
"""Fields of the configuration that name arrays."""
_BLOCK = 2**24
_NUMBERS = "fiub"

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class _Form:
    """What a field's array looks like: its name in the file, and its axes after the probes."""

    tensor: str
    axes: tuple[str, ...]


_FORMS = {
    CONCEPTS: _Form("concepts", ("concepts",)),
    MASKS: _Form("masks", ("concepts", "height", "width")),
    FEATURES: _Form("features", ("any",)),
}


def named(config: v1.UnitsConfig) -> dict[str, str]:
    """Returns the arrays that a configuration names: `blobs/{sha256}` by field."""
    found = {
        CONCEPTS: config.concepts,
        MASKS: config.masks,
        FEATURES: config.embedding.features,
        DIRECTIONS: config.given_directions,
    }
    return {field: name for field, name in found.items() if name}


def opened(field: str, path: Path, probes: int) -> dict[str, Array]:
    """Maps the arrays of a file into memory, checked as far as its header tells.

    Args:
        field: The field that names it.
        path: The file.
        probes: Number of probes, each of which has a row; not for directions.

    Returns:
        Arrays by name: the value of the network for directions, else one of the field's name.

    Raises:
        InvalidConfig: It is not readable, or of another form; its field is the metadata's `field`.
    """
    try:
        header = Header.of(path)
        arrays = {name: header.mapped(name) for name in sorted(header.entries)}
    except UnreadableTensorsError as error:
        raise InvalidConfig(str(error), field=field) from error
    form = _FORMS.get(field)
    if form is not None and set(arrays) != {form.tensor}:
        raise InvalidConfig(
            f"the file holds {', '.join(arrays) or 'nothing'}; expected '{form.tensor}' alone",
            field=field,
        )
    if not arrays:
        raise InvalidConfig("the file holds nothing; expected a matrix for each value", field=field)
    rows = ("any", "units") if form is None else (str(probes), *form.axes)
    for name, array in arrays.items():
        wrong = array.ndim != len(rows) or (form is not None and len(array) != probes)
        if wrong or not array.size or array.dtype.kind not in _NUMBERS:
            raise InvalidConfig(
                f"'{name}' is {array.dtype.name} of shape {list(array.shape)}; expected numbers of "
                f"shape [{', '.join(rows)}]" + ("" if form is None else ", a row per probe"),
                field=field,
            )
    return arrays


def read(field: str, paths: Mapping[str, Path], config: v1.UnitsConfig, probes: int) -> Any:  # noqa: ANN401 - see below
    """Reads what a field names, with its content checked.

    Args:
        field: The field.
        paths: Files by `blobs/{sha256}`.
        config: The configuration.
        probes: Number of probes.

    Returns:
        None where the field is empty; bool arrays for concepts and masks, mapped from the file
        where that is possible; float32 for features; float32 by value for directions.

    Raises:
        InvalidConfig: The file is missing, not readable, of another form, or holds other numbers.
    """
    name = named(config).get(field)
    if name is None:
        return None
    if name not in paths:
        raise InvalidConfig(f"the file of {name!r} is missing", field=field)
    arrays = opened(field, paths[name], probes)
    if field in {CONCEPTS, MASKS}:
        (array,) = arrays.values()
        return _truth(array, field)
    single = {value: _finite(array, value, field) for value, array in arrays.items()}
    return single if field == DIRECTIONS else next(iter(single.values()))


def _truth(array: Array, field: str) -> npt.NDArray[np.bool_]:
    step = max(1, _BLOCK // array[0].size)
    for begin in range(0, len(array), step):
        wrong = ~np.isin(array[begin : begin + step], (0, 1))
        if wrong.any():
            found = array[begin : begin + step][wrong][0]
            raise InvalidConfig(f"holds {found}; expected 0 and 1 alone", field=field)
    return array.view(bool) if array.dtype.itemsize == 1 else array.astype(bool)


def _finite(array: Array, name: str, field: str) -> npt.NDArray[np.float32]:
    single = np.ascontiguousarray(array, dtype=np.float32)
    if not np.isfinite(single).all():
        raise InvalidConfig(f"'{name}' holds NaN or infinite values", field=field)
    return single
