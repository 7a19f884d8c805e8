"""When stored content was last relied on, so that none is collected that somebody builds on.

A blob that is there already is not written again, and so looks old. Whoever is going to rely on
such a one notes its use first. Notes and collections exclude each other in the database: a use is
noted before the collection decides, or after the blob has gone, and then the writer sees that.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

import sqlalchemy as sa

from onnx_audit_server.store.clock import now_us
from onnx_audit_server.store.database import insert, lock, outlast
from onnx_audit_server.store.tables import uses

LOCK = 0x6F6E6763
"""Key of the advisory lock between users and the collection in a PostgreSQL database."""


def share(connection: sa.Connection) -> None:
    """Keeps collections out until the transaction ends."""
    lock(connection, LOCK, shared=True)


def exclude(connection: sa.Connection) -> None:
    """Keeps notes of uses and new references out until the transaction ends.

    However long that takes: what is removed in it does not come back.
    """
    outlast(connection)
    lock(connection, LOCK)


def note(connection: sa.Connection, digests: Iterable[str]) -> None:
    """Notes within the caller's transaction that content is relied on now."""
    share(connection)
    moment = now_us()
    # In the order of the digests, so that two who note the same do not wait for each other.
    rows = [{"digest": digest, "used_us": moment} for digest in sorted(set(digests))]
    statement = insert(connection, uses)
    update = statement.on_conflict_do_update(
        index_elements=[uses.c.digest], set_={"used_us": statement.excluded.used_us}
    )
    if rows:
        connection.execute(update, rows)


class Uses:
    """Notes uses of content that is named by its digest."""

    def __init__(self, engine: sa.Engine, retention: float) -> None:
        """Opens the notes.

        Args:
            engine: The database.
            retention: Seconds for which unused blobs stay, the same in all processes.
        """
        self._engine = engine
        self._fresh = retention / 2

    def stale(self, last_modified: datetime) -> bool:
        """Whether a blob is so old that its use must be noted.

        Younger ones need no note: they stay for the other half of the retention in any case.
        """
        return (datetime.now(UTC) - last_modified).total_seconds() > self._fresh

    def note(self, digests: Iterable[str]) -> None:
        """Notes that content is relied on now."""
        with self._engine.begin() as connection:
            note(connection, digests)
