"""How probes become the model's input: fills in what an input spec leaves out. No torch.

Only what is safe is worked out, and each guess is put into a sentence for people to read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from onnx_audit import v1
from onnx_auditors.errors import ProbesDoNotFit

Shape = tuple[int, ...]
_Pair = tuple["v1.Layout.ValueType", "v1.Layout.ValueType"]
_LAYOUT_NAMES = {v1.LAYOUT_FLAT: "FLAT", v1.LAYOUT_CHW: "CHW", v1.LAYOUT_HWC: "HWC"}
_IMAGES = (v1.LAYOUT_CHW, v1.LAYOUT_HWC)
_COMMON_CHANNELS = (1, 3, 4)
_UINT8_MAX = 255.0
_LEAST_CLASSES = 2
_MATRIX, _IMAGE = 2, 3
_FLAT_PAIR: _Pair = (v1.LAYOUT_FLAT, v1.LAYOUT_FLAT)


def resolve(
    spec: v1.InputSpec, model: v1.ModelSummary, probes: v1.ProbeSummary
) -> tuple[v1.InputSpec, list[str]]:
    """Returns the spec with everything filled in, and a sentence for each thing worked out.

    Args:
        spec: What the user said.
        model: The model.
        probes: The probe set.

    Raises:
        ProbesDoNotFit: The three do not go together, or what is missing cannot be guessed safely.
    """
    filled = v1.InputSpec()
    filled.CopyFrom(spec)
    notes: list[str] = []
    info = _model_input(filled, model)
    _fill_layouts(filled, tuple(info.shape[1:]), tuple(probes.shape), notes)
    _fill_divisor(filled, probes, notes)
    _fill_box(filled, probes, notes)
    _fill_normalisation(filled, info, notes)
    _check_values(filled, tuple(info.shape[1:]), probes)
    _check_levels(filled, info)
    _check_labels(model, probes)
    return filled, notes


def sample_shape(spec: v1.InputSpec, model: v1.ModelSummary, probes: v1.ProbeSummary) -> Shape:
    """Returns the shape of one sample as the model gets it, its open axes filled in.

    Args:
        spec: The spec as `resolve` returns it.
        model: The model.
        probes: The probe set.
    """
    info = next(i for i in model.inputs if i.name == spec.input_name)
    declared, probe = tuple(info.shape[1:]), tuple(probes.shape)
    if spec.model_layout == v1.LAYOUT_FLAT:
        known = math.prod(size for size in declared if size > 0)
        return tuple(size if size > 0 else math.prod(probe) // known for size in declared)
    channels, height, width = canonical(spec.probe_layout, probe)
    if len(declared) == _MATRIX:
        return (height, width)
    if spec.model_layout == v1.LAYOUT_CHW:
        return (channels, height, width)
    return (height, width, channels)


def canonical(layout: v1.Layout.ValueType, shape: Shape) -> Shape:
    """Returns (channels, height, width) of an image shape."""
    if len(shape) == _MATRIX:
        return (1, *shape)
    return shape if layout == v1.LAYOUT_CHW else (shape[2], shape[0], shape[1])


def channel_count(layout: v1.Layout.ValueType, shape: Shape) -> int:
    """Returns how many values a per-channel list has; for FLAT each entry is a channel."""
    return math.prod(shape) if layout == v1.LAYOUT_FLAT else canonical(layout, shape)[0]


def _model_input(spec: v1.InputSpec, model: v1.ModelSummary) -> v1.TensorInfo:
    names = [info.name for info in model.inputs]
    if not spec.input_name:
        if len(names) != 1:
            raise ProbesDoNotFit(
                f"the model has the inputs {', '.join(names) or '(none)'}; expected exactly one"
            )
        spec.input_name = names[0]
    if spec.input_name not in names:
        raise ProbesDoNotFit(
            f"the model has no input '{spec.input_name}'; it has {', '.join(names)}"
        )
    info = model.inputs[names.index(spec.input_name)]
    if len(info.shape) < _MATRIX:
        raise ProbesDoNotFit(
            f"input '{info.name}' has the shape {list(info.shape)}; expected a batch axis and at "
            "least one more"
        )
    return info


def _fits(probe: Shape, model: Shape, layouts: _Pair) -> bool:
    probe_layout, model_layout = layouts
    if v1.LAYOUT_FLAT in layouts:
        if probe_layout != model_layout:
            return False
        return _flat_fits(probe, model)
    if len(probe) not in {_MATRIX, _IMAGE} or len(model) not in {_MATRIX, _IMAGE}:
        return False
    found = canonical(probe_layout, probe)
    wanted = canonical(model_layout, model)
    return all(w in {-1, f} for f, w in zip(found, wanted, strict=True))


def _flat_fits(probe: Shape, model: Shape) -> bool:
    known = math.prod(size for size in model if size > 0)
    if all(size > 0 for size in model):
        return math.prod(probe) == known
    if sum(size < 1 for size in model) == 1:
        return math.prod(probe) % known == 0
    return len(probe) == len(model) and all(m in {-1, p} for p, m in zip(probe, model, strict=True))


def _fill_layouts(spec: v1.InputSpec, model: Shape, probe: Shape, notes: list[str]) -> None:
    """Chooses the layouts that fit; asks where several would and give different inputs."""
    given = (spec.probe_layout, spec.model_layout)
    choices = [
        (p, m)
        for p in _LAYOUT_NAMES
        for m in _LAYOUT_NAMES
        if given[0] in {v1.LAYOUT_UNSPECIFIED, p}
        and given[1] in {v1.LAYOUT_UNSPECIFIED, m}
        and _fits(probe, model, (p, m))
    ]
    if not choices:
        said = " and ".join(_LAYOUT_NAMES[g] for g in given if g)
        raise ProbesDoNotFit(
            f"a probe has the shape {list(probe)}, the model's input wants {_open(model)} after "
            f"the batch axis{f' and the layouts are given as {said}' if said else ''}; save the "
            "probes in another shape, or correct the layouts"
        )
    guess = len(choices) > 1 or not any(given)
    chosen = _choose(choices, probe, model) if guess else choices[0]
    spec.probe_layout, spec.model_layout = chosen
    if v1.LAYOUT_UNSPECIFIED in given:
        names = f"{_LAYOUT_NAMES[chosen[0]]} probes {list(probe)} to {_LAYOUT_NAMES[chosen[1]]}"
        notes.append(f"Layouts were worked out from the shapes: {names} {_open(model)}.")


def _choose(choices: list[_Pair], probe: Shape, model: Shape) -> _Pair:
    """Returns the choice that people mean, if only one can be meant."""
    images = [c for c in choices if v1.LAYOUT_FLAT not in c]
    same_shape = len(probe) == len(model) and all(
        m in {-1, p} for p, m in zip(probe, model, strict=True)
    )
    if same_shape:
        if len(probe) == _IMAGE:
            for layout, axis in ((v1.LAYOUT_CHW, 0), (v1.LAYOUT_HWC, 2)):
                if probe[axis] in _COMMON_CHANNELS and (layout, layout) in choices:
                    return (layout, layout)
        return _FLAT_PAIR if _FLAT_PAIR in choices else images[0]
    if images:
        # For one channel the layouts agree; else the shapes differ and only one choice turns one
        # into the other.
        distinct = {canonical(p, probe) for p, _ in images}
        if len(distinct) == 1:
            return images[0]
    elif len(probe) < _IMAGE or 1 in {probe[0], probe[-1]}:
        return _FLAT_PAIR
    raise ProbesDoNotFit(
        f"probes {list(probe)} fit the model's input {_open(model)} in several ways; give "
        "probe_layout and model_layout (FLAT for both keeps the order of the values)"
    )


def _open(shape: Shape) -> str:
    return "[" + ", ".join("any" if size < 0 else str(size) for size in shape) + "]"


def _fill_divisor(spec: v1.InputSpec, probes: v1.ProbeSummary, notes: list[str]) -> None:
    if spec.divisor < 0 or not math.isfinite(spec.divisor):
        raise ProbesDoNotFit(f"divisor is {spec.divisor}; expected a positive number")
    if not spec.divisor:
        spec.divisor = _UINT8_MAX if probes.dtype == "uint8" else 1.0
        if probes.dtype == "uint8":
            notes.append("Probes are uint8: values are divided by 255.")


def _fill_box(spec: v1.InputSpec, probes: v1.ProbeSummary, notes: list[str]) -> None:
    if spec.lower and spec.upper:
        return
    if spec.lower or spec.upper:
        raise ProbesDoNotFit("only one end of the box is given; give lower and upper")
    low, high = probes.min / spec.divisor, probes.max / spec.divisor
    if probes.dtype == "uint8":
        upper = _UINT8_MAX / spec.divisor
        notes.append(f"The box is [0, {upper:g}], the range of uint8.")
    elif low >= 0 and high <= 1:
        upper = 1.0
        notes.append(
            f"The box is taken to be [0, 1], because all values lie in [{low:g}, {high:g}]; give "
            "lower and upper if inputs may be outside."
        )
    else:
        raise ProbesDoNotFit(
            f"probe values reach from {low:g} to {high:g}, which says nothing about the range that "
            "inputs may have; give lower and upper"
        )
    spec.lower[:] = [0.0]
    spec.upper[:] = [upper]


def _fill_normalisation(spec: v1.InputSpec, info: v1.TensorInfo, notes: list[str]) -> None:
    if "int" in info.dtype and not spec.mean and not spec.std and spec.divisor != 1:
        spec.std[:] = [1 / spec.divisor]
        notes.append(f"The model takes {info.dtype}: it gets the values as they are stored.")
    if not spec.mean:
        spec.mean[:] = [0.0]
    if not spec.std:
        spec.std[:] = [1.0]
    if not spec.channel_order:
        spec.channel_order = v1.CHANNEL_ORDER_SAME


def _check_values(spec: v1.InputSpec, model: Shape, probes: v1.ProbeSummary) -> None:
    probe = tuple(probes.shape)
    channels = channel_count(spec.probe_layout, probe)
    for field in ("lower", "upper", "mean", "std"):
        values: Sequence[float] = getattr(spec, field)
        if len(values) not in {1, channels}:
            raise ProbesDoNotFit(
                f"{field} has {len(values)} values; expected 1 or {channels}, one per channel of "
                f"the probes {list(probe)} for the model's input {_open(model)}"
            )
        if not all(math.isfinite(value) for value in values):
            raise ProbesDoNotFit(f"{field} is {list(values)}; expected finite numbers")
    if min(spec.std) <= 0:
        raise ProbesDoNotFit(f"std is {list(spec.std)}; expected positive numbers")
    count = max(len(spec.lower), len(spec.upper))
    lower, upper = _spread(spec.lower, count), _spread(spec.upper, count)
    if any(low >= high for low, high in zip(lower, upper, strict=True)):
        raise ProbesDoNotFit(f"lower {lower} is not below upper {upper}")
    low, high = probes.min / spec.divisor, probes.max / spec.divisor
    if low < min(lower) or high > max(upper):
        raise ProbesDoNotFit(
            f"probe values reach from {low:g} to {high:g} (stored values over the divisor "
            f"{spec.divisor:g}), outside the box {lower} to {upper}; correct the box, the divisor, "
            "or the probes"
        )
    reversed_channels = spec.channel_order == v1.CHANNEL_ORDER_REVERSED
    if reversed_channels and (spec.probe_layout not in _IMAGES or channels == 1):
        raise ProbesDoNotFit(
            "channels are to be reversed, but the layouts have no channels to reverse; set "
            "channel_order to SAME, or give CHW or HWC layouts"
        )


def _check_levels(spec: v1.InputSpec, info: v1.TensorInfo) -> None:
    """Refuses a box of which a model with integer inputs sees no more than two levels."""
    if "int" not in info.dtype:
        return
    levels = (max(spec.upper) - min(spec.lower)) / min(spec.std)
    if levels <= 1:
        raise ProbesDoNotFit(
            f"input '{info.name}' is of {info.dtype}, and the box {list(spec.lower)} to "
            f"{list(spec.upper)} is {levels:g} wide there; give std, such as "
            f"{1 / _UINT8_MAX:.8f} for pixels in [0, 1], or a box of its own levels"
        )


def _spread(values: Sequence[float], count: int) -> list[float]:
    return list(values) if len(values) == count else list(values) * count


def _check_labels(model: v1.ModelSummary, probes: v1.ProbeSummary) -> None:
    """Refuses labels beyond the classes where the file says plainly how many there are."""
    if not probes.has_labels or len(model.outputs) != 1 or "int" in model.outputs[0].dtype:
        return
    shape = list(model.outputs[0].shape)[1:]
    classes = max(math.prod(shape), _LEAST_CLASSES)  # one score is read as two classes
    if len(shape) and all(size > 0 for size in shape) and probes.max_label >= classes:
        raise ProbesDoNotFit(
            f"labels reach {probes.max_label}, but the model has {classes} classes; labels count "
            "from 0"
        )
