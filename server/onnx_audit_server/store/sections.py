"""Records of sections that later audits may take over."""

from __future__ import annotations

import contextlib

import sqlalchemy as sa

from onnx_audit import v1
from onnx_audit_server.store.clock import now_us
from onnx_audit_server.store.tables import sections


class SectionRecords:
    """Reads and writes of the stored sections; every method is one transaction."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._reader = engine.execution_options(read_only=True)

    def put(self, key: str, section: v1.StoredSection) -> None:
        """Stores a section under a key, in the place of one that is there."""
        values = {"created_us": now_us(), "message": section.SerializeToString()}
        # The error means that another audit has just stored the same section.
        with contextlib.suppress(sa.exc.IntegrityError), self._engine.begin() as connection:
            update = sa.update(sections).where(sections.c.key == key).values(values)
            if not connection.execute(update).rowcount:
                connection.execute(sa.insert(sections).values(key=key, **values))

    def get(self, key: str) -> v1.StoredSection | None:
        """The section that is stored under a key, None where there is none."""
        with self._reader.begin() as connection:
            message = connection.execute(
                sa.select(sections.c.message).where(sections.c.key == key)
            ).scalar()
        return None if message is None else v1.StoredSection.FromString(message)
