"""What records and reports refer to."""

from __future__ import annotations

import re

import sqlalchemy as sa

from onnx_audit import v1
from onnx_audit_server.store.tables import audits, models, probe_sets
from onnx_audit_server.store.uses import share

_DIGEST = re.compile(rb"[0-9a-f]{64}")
_AUDIT = re.compile(rb"audits/([0-9A-Za-z_-]{1,64})")


class MissingError(Exception):
    """A resource that an audit names is not there; its text is the name."""


def digests(content: bytes) -> set[bytes]:
    """The SHA-256 digests, as 32 bytes each, that a serialised message or JSON text names.

    Whatever looks like one counts, so that no field of the schema can be forgotten. Each begins a
    run of hexadecimal characters: in a name it follows a slash, in a text of its own its length,
    which is "@" in protobuf, or a quotation mark.
    """
    return {bytes.fromhex(found.decode()) for found in _DIGEST.findall(content)}


def audits_named(content: bytes) -> set[str]:
    """The ids of the audits that a serialised message names."""
    return {found.decode() for found in _AUDIT.findall(content)}


def require_present(connection: sa.Connection, audit: v1.Audit) -> None:
    """Sees to it that all that an audit names stays until it is recorded itself.

    To be called in the transaction that records it.

    Raises:
        MissingError: Something has been removed since it was looked up.
    """
    share(connection)
    named = [audit.model, *(peer.model for peer in audit.auditors.transfer.peers)]
    if reference := audit.auditors.units.embedding.model:
        named.append(reference)
    for table, names in ((models, named), (probe_sets, [audit.probe_set])):
        for name in names:
            query = sa.select(table.c.sha256).where(table.c.sha256 == name.partition("/")[2])
            if connection.execute(query).scalar() is None:
                raise MissingError(name)
    if audit.baseline.startswith("audits/"):
        identifier = audit.baseline.split("/")[1]
        query = sa.select(audits.c.id).where(audits.c.id == identifier)
        if connection.execute(query).scalar() is None:
            raise MissingError(audit.baseline)
