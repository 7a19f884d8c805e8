"""Which auditors there are. Importing this module needs no torch; getting an auditor does."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Any

from onnx_audit import v1
from onnx_auditors.auditor import Auditor

_MODULES: dict[v1.Auditor.ValueType, tuple[str, str]] = {
    v1.AUDITOR_UNITS: ("onnx_auditors.units.auditor", "UnitsAuditor"),
    v1.AUDITOR_DISTORTION: ("onnx_auditors.distortion.auditor", "DistortionAuditor"),
    v1.AUDITOR_LIPSCHITZ: ("onnx_auditors.lipschitz.auditor", "LipschitzAuditor"),
    v1.AUDITOR_TRANSFER: ("onnx_auditors.transfer.auditor", "TransferAuditor"),
}

NAMES: dict[v1.Auditor.ValueType, str] = {
    v1.AUDITOR_UNITS: "units",
    v1.AUDITOR_DISTORTION: "distortion",
    v1.AUDITOR_TRANSFER: "transfer",
    v1.AUDITOR_LIPSCHITZ: "lipschitz",
}
"""Field of each auditor in `AuditorConfigs` and `Report`."""

NEED_NO_CLASSES: frozenset[v1.Auditor.ValueType] = frozenset({v1.AUDITOR_UNITS})
"""Auditors that audit models without class scores too."""


def need_classes(configs: v1.AuditorConfigs) -> bool:
    """Says whether an auditor that is asked for needs a model with class scores."""
    asked = {field.name for field, _ in configs.ListFields()}
    return not asked <= {NAMES[kind] for kind in NEED_NO_CLASSES}


BUILDS_ON: Mapping[v1.Auditor.ValueType, v1.Auditor.ValueType] = {
    v1.AUDITOR_TRANSFER: v1.AUDITOR_DISTORTION
}
"""Auditors that take over what another has found, where the same audit has both."""


class _Auditors(Mapping["v1.Auditor.ValueType", "Auditor[Any, Any, Any]"]):
    """Imports an auditor when it is first asked for."""

    def __getitem__(self, kind: v1.Auditor.ValueType) -> Auditor[Any, Any, Any]:
        module, name = _MODULES[kind]
        auditor: Auditor[Any, Any, Any] = getattr(importlib.import_module(module), name)()
        return auditor

    def __iter__(self) -> Iterator[v1.Auditor.ValueType]:
        return iter(_MODULES)

    def __len__(self) -> int:
        return len(_MODULES)


AUDITORS: Mapping[v1.Auditor.ValueType, Auditor[Any, Any, Any]] = _Auditors()
"""The auditors by kind."""
