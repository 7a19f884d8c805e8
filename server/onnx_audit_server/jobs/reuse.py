"""Sections that were computed before: the same work gives the same figures, so it is done once.

A section is looked up by the digest of everything that its figures depend on. What is stored is a
reference alone; the section, its shards' results and its artefacts are blobs, and one that is gone
makes the section be computed again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

from onnx_audit import v1
from onnx_audit_server.store.blobs import BlobStore
from onnx_audit_server.store.sections import SectionRecords
from onnx_auditors.registry import BUILDS_ON, NAMES

Found = dict[v1.Auditor.ValueType, v1.StoredSection]


def section_key(audit: v1.Audit, plan: v1.AuditPlan, auditor: v1.Auditor.ValueType) -> str:
    """Digest of everything that the figures of an audit's section depend on."""
    key = v1.SectionKey(
        auditor=auditor,
        model=audit.model,
        probe_set=audit.probe_set,
        input_spec=audit.input_spec,
        linear_head=plan.linear_head if plan.HasField("linear_head") else None,
        provenance=plan.provenance,
        code_sha256=plan.code_sha256,
    )
    for kind in (auditor, BUILDS_ON.get(auditor)):
        if kind is not None and plan.auditors.HasField(NAMES[kind]):  # type: ignore[arg-type] # NAMES holds the field's names
            getattr(key.configs, NAMES[kind]).CopyFrom(getattr(plan.auditors, NAMES[kind]))
    return hashlib.sha256(key.SerializeToString(deterministic=True)).hexdigest()


def encode(found: Found) -> str:
    """Found sections as text."""
    stored = {str(auditor): section.SerializeToString().hex() for auditor, section in found.items()}
    return json.dumps(stored)


def decode(text: str) -> Found:
    """The found sections that `encode` wrote."""
    return {
        v1.Auditor.ValueType(int(auditor)): v1.StoredSection.FromString(bytes.fromhex(stored))
        for auditor, stored in json.loads(text).items()
    }


class StoredSections:
    """Keeps sections for later audits, and finds those that an audit need not compute."""

    def __init__(self, records: SectionRecords, blobs: BlobStore) -> None:
        self._records = records
        self._blobs = blobs

    def keep(
        self,
        audit: v1.Audit,
        plan: v1.AuditPlan,
        auditor: v1.Auditor.ValueType,
        section: str,
        partials: list[str],
    ) -> None:
        """Stores a section that an audit has computed; the latest one stays."""
        stored = v1.StoredSection(
            audit=audit.name, section_sha256=section, partials_sha256=partials
        )
        self._records.put(section_key(audit, plan, auditor), stored)

    def find(self, audit: v1.Audit, plan: v1.AuditPlan) -> Found:
        """Returns the sections of an audit's plan that are there with all that belongs to them."""
        planned = [part.auditor for part in plan.plans]
        found: Found = {}
        for auditor in planned:
            stored = self._records.get(section_key(audit, plan, auditor))
            if stored is not None and self._whole(stored.section_sha256):
                found[auditor] = stored
        for auditor in planned:
            base = BUILDS_ON.get(auditor)
            if base in found and auditor not in found:
                # Its shards read what those of the other auditor have found.
                partials = found[base].partials_sha256
                if any(self._blobs.hold(digest) is None for digest in partials):
                    del found[base]
        return found

    def _whole(self, section: str) -> bool:
        """Whether a section and its artefacts are in the blob store."""
        if self._blobs.hold(section) is None:
            return False
        try:
            result = v1.SectionResult.FromString(self._blobs.get(section))
        except (FileNotFoundError, DecodeError):
            return False
        return all(self._blobs.hold(blob.sha256) is not None for blob in artefacts(result))


def artefacts(message: Message) -> Iterator[v1.BlobRef]:
    """Yields every blob that a message refers to, at whatever depth."""
    if isinstance(message, v1.BlobRef):
        if message.sha256:
            yield message
        return
    for field, value in message.ListFields():
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            # Iterating over a map gives its keys; no map of the schema holds blobs.
            for part in (value,) if isinstance(value, Message) else value:
                if isinstance(part, Message):
                    yield from artefacts(part)
