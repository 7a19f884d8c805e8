"""How the common probe space becomes the input of a peer. No torch.

All models look at the audited model's probe space: its box and its divisor. What a peer has of its
own is the way from there to its input: layout, channel order, normalisation, and a size to which
images are brought.
"""

from __future__ import annotations

from dataclasses import dataclass

from onnx_audit import v1
from onnx_auditors import input_spec
from onnx_auditors.errors import InvalidConfig, ProbesDoNotFit

_IMAGES = (v1.LAYOUT_CHW, v1.LAYOUT_HWC)
_MATRIX, _IMAGE = 2, 3
_COMMON = ("lower", "upper", "divisor")


@dataclass(frozen=True)
class PeerSpec:
    """How a peer gets its input.

    Attributes:
        spec: With everything filled in.
        notes: What was worked out, a sentence each.
        probes: The probe set as the map sees it, after resizing.
        size: Height and width to which probes are resized; None where they are not.
    """

    spec: v1.InputSpec
    notes: list[str]
    probes: v1.ProbeSummary
    size: tuple[int, int] | None


def resolve(
    peer: v1.PeerModel,
    model: v1.ModelSummary,
    probes: v1.ProbeSummary,
    audited: v1.InputSpec,
    prefix: str,
) -> PeerSpec:
    """Works out how probes become a peer's input.

    Args:
        peer: What the user says of it.
        model: What its file says.
        probes: The probe set.
        audited: The audited model's spec, filled in.
        prefix: Path of the peer in the configuration, for errors.

    Raises:
        InvalidConfig: The peer's spec has a probe space of its own.
        ProbesDoNotFit: Probes, spec and model do not go together.
    """
    spec = _with_common_space(peer, audited, prefix)
    size = _wanted_size(peer, model, probes, spec)
    seen = v1.ProbeSummary()
    seen.CopyFrom(probes)
    seen.has_labels = False  # they are the audited model's; a label map may lead to others
    notes = []
    if size is not None:
        layout, seen_shape = _resized(tuple(probes.shape), spec, size, prefix)
        spec.probe_layout = layout
        seen.shape[:] = seen_shape
        notes.append(
            f"Probes {list(probes.shape)} are resized to {seen_shape} in probe space (linear)."
        )
    try:
        filled, more = _resolve(spec, model, seen, fixed=bool(peer.input_spec.probe_layout))
    except ProbesDoNotFit as error:
        raise ProbesDoNotFit(str(error), field=f"{prefix}input_spec") from None
    return PeerSpec(filled, notes + more, seen, size)


def _resolve(
    spec: v1.InputSpec, model: v1.ModelSummary, probes: v1.ProbeSummary, *, fixed: bool
) -> tuple[v1.InputSpec, list[str]]:
    """Fills a spec in; images may also go to a model of vectors, unless their layout is fixed."""
    try:
        return input_spec.resolve(spec, model, probes)
    except ProbesDoNotFit:
        if fixed or not spec.probe_layout:
            raise
    open_layout = v1.InputSpec()
    open_layout.CopyFrom(spec)
    open_layout.ClearField("probe_layout")
    return input_spec.resolve(open_layout, model, probes)


def _with_common_space(peer: v1.PeerModel, audited: v1.InputSpec, prefix: str) -> v1.InputSpec:
    """Returns the peer's spec with the audited model's box, divisor and order of probe axes."""
    spec = v1.InputSpec()
    if peer.HasField("input_spec"):
        spec.CopyFrom(peer.input_spec)
        for field in _COMMON:
            given, common = getattr(spec, field), getattr(audited, field)
            if given and given != common:
                raise InvalidConfig(
                    f"is {given}, and the audited model's is {common}; all models look at one "
                    "probe space: leave it out, and put the rest into mean and std",
                    field=f"{prefix}input_spec.{field}",
                )
    else:
        if any(audited.mean) or set(audited.std) != {1.0}:
            spec.mean.extend(audited.mean)
            spec.std.extend(audited.std)
        spec.channel_order = audited.channel_order
    spec.lower[:], spec.upper[:] = audited.lower, audited.upper
    spec.divisor = audited.divisor
    if not spec.probe_layout and audited.probe_layout in _IMAGES:
        spec.probe_layout = audited.probe_layout
    return spec


def _wanted_size(
    peer: v1.PeerModel, model: v1.ModelSummary, probes: v1.ProbeSummary, spec: v1.InputSpec
) -> tuple[int, int] | None:
    """Returns the size of the peer's images where the probes have another one."""
    shape = tuple(probes.shape)
    if len(shape) not in {_MATRIX, _IMAGE}:
        return None
    if peer.input_height:
        wanted: tuple[int, ...] = (peer.input_height, peer.input_width)
    else:
        names = [info.name for info in model.inputs]
        name = spec.input_name or (names[0] if len(names) == 1 else "")
        if name not in names:
            return None
        declared = tuple(model.inputs[names.index(name)].shape[1:])
        if len(declared) not in {_MATRIX, _IMAGE} or min(declared) < 1:
            return None
        layout = spec.model_layout if spec.model_layout in _IMAGES else _layout_of(declared)
        wanted = input_spec.canonical(layout, declared)[1:3]
    own = input_spec.canonical(_probe_layout(shape, spec), shape)[1:]
    return None if tuple(own) == tuple(wanted) or 1 in wanted else (wanted[0], wanted[1])


def _probe_layout(shape: tuple[int, ...], spec: v1.InputSpec) -> v1.Layout.ValueType:
    return spec.probe_layout if spec.probe_layout in _IMAGES else _layout_of(shape)


def _layout_of(shape: tuple[int, ...]) -> v1.Layout.ValueType:
    """Returns the layout of an image whose channels are the shortest axis, the first of equals."""
    last = len(shape) == _IMAGE and shape[-1] < shape[0]
    return v1.LAYOUT_HWC if last else v1.LAYOUT_CHW


def _resized(
    shape: tuple[int, ...], spec: v1.InputSpec, size: tuple[int, int], prefix: str
) -> tuple[v1.Layout.ValueType, list[int]]:
    if spec.probe_layout == v1.LAYOUT_FLAT:
        raise ProbesDoNotFit(
            f"the model takes images of {size[0]} x {size[1]}, and the probes {list(shape)} "
            "are declared FLAT, so they cannot be resized; give probe_layout as CHW or HWC",
            field=f"{prefix}input_spec",
        )
    layout = _probe_layout(shape, spec)
    if len(shape) == _MATRIX:
        return layout, list(size)
    channels = input_spec.canonical(layout, shape)[0]
    return layout, [channels, *size] if layout == v1.LAYOUT_CHW else [*size, channels]
