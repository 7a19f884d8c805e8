"""What a reader of a comparison must know: where the two audits were not alike."""

from __future__ import annotations

from typing import Final

from google.protobuf.message import Message

from onnx_audit import v1

_SECTIONS: Final = ("distortion", "lipschitz", "transfer", "units")


def notes(baseline: v1.Report, candidate: v1.Report) -> list[str]:
    """How the two audits differ besides their models, a sentence each."""
    found = []
    if baseline.model.sha256 == candidate.model.sha256:
        found.append("Both reports are of the same model.")
    if baseline.probes.sha256 != candidate.probes.sha256:
        found.append(
            "The probe sets are not the same: differences are those of two independent sets of "
            "probes, and exact figures of models alone can be compared one to one."
        )
    if baseline.input_spec != candidate.input_spec:
        found.append("Probes are mapped to the models' inputs in different ways.")
    for name in _SECTIONS:
        if baseline.HasField(name) and candidate.HasField(name):
            fields = _differing(getattr(baseline, name).config, getattr(candidate, name).config)
            if fields:
                found.append(f"Settings of {name} differ: {', '.join(fields)}.")
    if baseline.provenance.seed != candidate.provenance.seed:
        found.append("The seeds of the two audits are not the same.")
    if baseline.provenance.device != candidate.provenance.device:
        found.append("The two audits ran on devices of different kinds.")
    if list(baseline.provenance.software) != list(candidate.provenance.software):
        found.append("The two audits ran with different versions of software.")
    return found


def _differing(a: Message, b: Message) -> list[str]:
    names = [field.name for field in a.DESCRIPTOR.fields_by_name.values()]
    return [name for name in names if getattr(a, name) != getattr(b, name)]
