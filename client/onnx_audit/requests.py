"""Builds requests from what callers pass: names or resources, auditor names or configurations."""

from __future__ import annotations

import difflib
import re
import uuid
from collections.abc import Collection, Sequence
from typing import Final, TypeAlias

from onnx_audit import v1
from onnx_audit.errors import ConfigError

AuditLike: TypeAlias = v1.Audit | str
AuditorsLike: TypeAlias = v1.AuditorConfigs | Sequence[str]

AUDITORS: Final = tuple(field.name for field in v1.AuditorConfigs.DESCRIPTOR.fields)
FINAL_STATES: Final = frozenset(
    (v1.AUDIT_STATE_SUCCEEDED, v1.AUDIT_STATE_FAILED, v1.AUDIT_STATE_CANCELLED)
)
_CONTENT_NAME: Final = re.compile(r"(models|probes|blobs)/[0-9a-f]{64}")


def is_content_name(text: object, collection: str) -> bool:
    """Whether it is the name of a resource in a collection, such as `models/{sha256}`."""
    match = _CONTENT_NAME.fullmatch(text) if isinstance(text, str) else None
    return match is not None and match.group(1) == collection


def audit_name(audit: AuditLike) -> str:
    """The name `audits/{id}` of an audit, given as message, name, report name or bare id."""
    name = audit if isinstance(audit, str) else audit.name
    name = name.removesuffix("/report")
    return name if name.startswith("audits/") else f"audits/{name}"


def unknown_name(what: str, name: str, known: Collection[str]) -> ConfigError:
    """The error for a name that does not exist: says which do, the nearest first."""
    near = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(sorted(known))}"
    return ConfigError(f"unknown {what} {name!r}; {hint}")


def auditor_configs(auditors: AuditorsLike) -> v1.AuditorConfigs:
    """The configurations of auditors; given as names, each with its defaults.

    Raises:
        ConfigError: There is no auditor of that name.
    """
    if isinstance(auditors, v1.AuditorConfigs):
        return auditors
    names = (auditors,) if isinstance(auditors, str) else auditors
    configs = v1.AuditorConfigs()
    for name in names:
        if name not in AUDITORS:
            raise unknown_name("auditor", name, AUDITORS)
        getattr(configs, name).SetInParent()
    return configs


def create_audit_request(
    model: str,
    probe_set: str,
    *,
    auditors: AuditorsLike,
    input_spec: v1.InputSpec | None,
    seed: int,
    timeout: float | None,
    display_name: str | None,
    request_id: str | None,
    linear_head: v1.LinearHeadConfig | None = None,
    policy: v1.Policy | None = None,
    fresh: bool = False,
) -> v1.CreateAuditRequest:
    """The request of an audit; made once per call, so that its retries are the same request.

    Raises:
        ConfigError: An auditor's name, the seed or the timeout cannot be right.
    """
    if seed < 0:
        raise ConfigError(f"seed is {seed}; expected 0 or a positive number")
    audit = v1.Audit(
        display_name=display_name or "",
        model=model,
        probe_set=probe_set,
        input_spec=input_spec,
        auditors=auditor_configs(auditors),
        seed=seed,
        linear_head=linear_head,
        policy=policy,
        fresh=fresh,
    )
    if timeout is not None:
        if timeout <= 0:
            raise ConfigError(f"timeout is {timeout} seconds; expected a positive number")
        audit.timeout.FromMilliseconds(max(1, round(timeout * 1000)))
    return v1.CreateAuditRequest(audit=audit, request_id=request_id or uuid.uuid4().hex)
