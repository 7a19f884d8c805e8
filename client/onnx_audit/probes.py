"""Probe inputs from arrays, .npz, .safetensors or a folder of images, checked and in one form.

The canonical form is a safetensors file with `inputs` (as stored: uint8, float16, float32 or
float64, first axis counting the probes) and, if known, `labels` (int64, one per probe). The same
content gives the same bytes and so the same name on the service.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from onnx_audit import v1
from onnx_audit.errors import ProbeError
from onnx_audit.image_folder import load_image_folder

Array: TypeAlias = npt.NDArray[Any]

INPUT_DTYPES: Final = ("uint8", "float16", "float32", "float64")
# Names under which a file may hold its inputs; the first is the one to use.
_INPUT_NAMES: Final = ("inputs", "images")
_VALUES_PER_CHECK: Final = 1 << 24
_COLOUR_AXES: Final = 4


@dataclass(frozen=True, eq=False)
class Probes:
    """Inputs of an audit on this machine.

    Attributes:
        inputs: One probe per row: [N, ...], uint8, float16, float32 or float64, finite.
        labels: The right class of each probe: [N], int64, not negative; None if not known.
        class_names: Names of the classes by label, if known.
        display_name: What people call the set.
        input_spec: What the source says about the inputs' layout; unset fields are not known.
        notes: What the reader of a file should know, a sentence each.
    """

    inputs: Array
    labels: npt.NDArray[np.int64] | None = None
    class_names: tuple[str, ...] = ()
    display_name: str = ""
    input_spec: v1.InputSpec | None = None
    notes: tuple[str, ...] = ()


ProbesLike: TypeAlias = Probes | Array | Mapping[str, Array] | Path | str


def load_probes(
    source: ProbesLike,
    *,
    labels: npt.ArrayLike | None = None,
    class_names: Sequence[str] | None = None,
    display_name: str | None = None,
) -> Probes:
    """Reads and checks probes.

    Args:
        source: An array [N, ...]; a mapping with `inputs` and perhaps `labels`; a .npz or
            .safetensors file with those names; or a folder of images with a subfolder per label.
        labels: Labels [N] that stand in for those of the source.
        class_names: Names of the classes by label that stand in for those of the source.
        display_name: What people call the set; by default the file's name.

    Raises:
        ProbeError: The source cannot be read, or holds what no audit can use.
    """
    if isinstance(source, Probes):
        probes = source
    elif isinstance(source, np.ndarray):
        probes = Probes(source)
    elif isinstance(source, Mapping):
        probes = _from_arrays(source, "the mapping")
    else:
        probes = _from_path(Path(source))
    if labels is not None:
        probes = replace(probes, labels=np.asarray(labels))
    if class_names is not None:
        probes = replace(probes, class_names=tuple(class_names))
    if display_name is not None:
        probes = replace(probes, display_name=display_name)
    return _checked(probes)


def save_probes(probes: Probes, path: Path) -> None:
    """Writes the canonical form: the same inputs and labels give the same bytes."""
    arrays = {"inputs": probes.inputs}
    if probes.labels is not None:
        arrays["labels"] = probes.labels
    safetensors.numpy.save_file(arrays, path)


def _from_path(path: Path) -> Probes:
    if path.is_dir():
        images = load_image_folder(path)
        # Grey images have no channel axis whose place would have to be said.
        colour = images.inputs.ndim == _COLOUR_AXES
        return Probes(
            images.inputs,
            images.labels,
            images.class_names,
            display_name=path.resolve().name,
            input_spec=v1.InputSpec(probe_layout=v1.LAYOUT_HWC) if colour else v1.InputSpec(),
            notes=images.notes,
        )
    if not path.is_file():
        raise ProbeError(
            f"{path}: no such file or folder; expected .npz, .safetensors or a folder of images"
        )
    readers = {".npz": _read_npz, ".safetensors": _read_safetensors}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise ProbeError(
            f"{path}: expected .npz, .safetensors or a folder of images, found "
            f"{path.suffix or 'no suffix'}"
        )
    return replace(_from_arrays(reader(path), str(path)), display_name=path.stem)


def _read_npz(path: Path) -> dict[str, Array]:
    """The arrays of a .npz file that matter here, or all names if none does."""
    try:
        with np.load(path, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise ProbeError(f"{path}: a single array, not a .npz; use numpy.savez")
            wanted = [name for name in file.files if name in (*_INPUT_NAMES, "labels")]
            if not set(wanted) & set(_INPUT_NAMES):
                raise _no_inputs(str(path), file.files)
            return {name: file[name] for name in wanted}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, pickle.UnpicklingError) as error:
        if "pickle" in str(error):
            raise ProbeError(
                f"{path}: holds pickled objects, which could run code when read and are refused; "
                "save plain numeric arrays with numpy.savez"
            ) from error
        raise ProbeError(f"{path}: not a readable .npz file: {error}") from error


def _read_safetensors(path: Path) -> dict[str, Array]:
    try:
        return dict(safetensors.numpy.load_file(path))
    except (safetensors.SafetensorError, OSError) as error:
        raise ProbeError(f"{path}: not a readable safetensors file: {error}") from error
    except (KeyError, TypeError, AttributeError) as error:  # element types that numpy lacks
        raise ProbeError(
            f"{path}: has an element type that NumPy lacks ({error}); expected one of "
            f"{', '.join(INPUT_DTYPES)}"
        ) from error


def _no_inputs(where: str, found: Sequence[str]) -> ProbeError:
    names = ", ".join(found) or "none"
    return ProbeError(f"{where}: found the arrays {names}; expected inputs (and perhaps labels)")


def _from_arrays(arrays: Mapping[str, Array], where: str) -> Probes:
    """Picks inputs and labels from named arrays."""
    present = [name for name in _INPUT_NAMES if name in arrays]
    if not present:
        raise _no_inputs(where, list(arrays))
    if len(present) > 1:
        raise ProbeError(f"{where}: has {' and '.join(present)}; expected one of them")
    notes = (
        (f"took the array {present[0]!r} as the inputs",) if present[0] != _INPUT_NAMES[0] else ()
    )
    return Probes(arrays[present[0]], arrays.get("labels"), notes=notes)


def _checked(probes: Probes) -> Probes:
    """Probes in canonical memory form, or an error that says what is wrong with them."""
    inputs = np.asarray(probes.inputs)
    if inputs.dtype.name not in INPUT_DTYPES:
        raise ProbeError(
            f"inputs are {inputs.dtype.name}; expected {', '.join(INPUT_DTYPES)}; "
            "convert them, for example with .astype('float32')"
        )
    if inputs.ndim < 2:  # noqa: PLR2004 - probes and at least one axis of each
        raise ProbeError(
            f"inputs have shape {inputs.shape}; expected [N, ...] with one probe per row"
        )
    if inputs.size == 0:
        raise ProbeError(f"inputs have shape {inputs.shape}: there are no probes in them")
    inputs = np.ascontiguousarray(inputs, dtype=inputs.dtype.newbyteorder("<"))
    _require_finite(inputs)
    labels = None if probes.labels is None else _checked_labels(probes.labels, len(inputs))
    if labels is not None and probes.class_names and labels.max() >= len(probes.class_names):
        raise ProbeError(
            f"label {labels.max()} has no class name; {len(probes.class_names)} names were given"
        )
    return replace(probes, inputs=inputs, labels=labels)


def _require_finite(inputs: Array) -> None:
    """Raises a ProbeError that names the first probe with NaN or infinite values."""
    if inputs.dtype.kind != "f":
        return
    rows = max(1, _VALUES_PER_CHECK // (inputs.size // len(inputs)))
    for start in range(0, len(inputs), rows):
        block = inputs[start : start + rows]
        finite = np.isfinite(block).reshape(len(block), -1).all(axis=1)
        if not finite.all():
            probe = start + int(np.argmin(finite))
            what = "NaN" if np.isnan(inputs[probe]).any() else "infinite values"
            raise ProbeError(f"probe {probe} has {what}; every input must be finite")


def _checked_labels(labels: npt.ArrayLike, count: int) -> npt.NDArray[np.int64]:
    """Labels as int64, one per probe and none negative."""
    array = np.asarray(labels)
    if array.dtype.kind not in "iu":
        raise ProbeError(f"labels are {array.dtype.name}; expected integers")
    if array.shape != (count,):
        raise ProbeError(
            f"labels have shape {list(array.shape)}; expected [{count}], one per probe"
        )
    if array.min() < 0 or array.max() > np.iinfo(np.int64).max:
        raise ProbeError(
            f"labels run from {array.min()} to {array.max()}; expected class numbers from 0"
        )
    return np.ascontiguousarray(array, dtype="<i8")
