"""Records of the processes that work on a database: who lives, and who took over from whom."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from onnx_audit_server.store.tables import workers


@dataclass(frozen=True)
class WorkerRow:
    """One process that works, or worked.

    Attributes:
        id: Its own and no other's, also not its successor's of the same name.
        name: The name that it was given; None once it was taken for dead.
        host: Where it runs.
        process: Its process id there.
        place: Id of its data folder.
        device: The kind of its devices: "cpu" or "cuda".
        slots: Tasks that it does at once.
        started_us: Microseconds since 1970.
        beat: Counts up while it lives.
        reaper: Who has taken its work over, None while it lives.
    """

    id: str
    name: str | None
    host: str
    process: int
    place: str
    device: str
    slots: int
    started_us: int
    beat: int = 0
    reaper: str | None = None


class NameTakenError(Exception):
    """Another process works under the name."""


class WorkerRecords:
    """Reads and writes of the workers' rows; every method but `holds` is one transaction."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._reader = engine.execution_options(read_only=True)

    def add(self, row: WorkerRow) -> None:
        """Enters a process.

        Raises:
            NameTakenError: Its name is another's.
        """
        try:
            with self._engine.begin() as connection:
                connection.execute(sa.insert(workers).values(**vars(row)))
        except sa.exc.IntegrityError:
            raise NameTakenError(row.name) from None

    def all(self) -> list[WorkerRow]:
        """Every row there is."""
        with self._reader.begin() as connection:
            return [WorkerRow(**row._mapping) for row in connection.execute(sa.select(workers))]  # noqa: SLF001 - the public way to a row's names

    def beat(self, identifier: str) -> bool:
        """Says that a process lives; False if it was taken for dead."""
        return self._update(
            sa.update(workers)
            .where(workers.c.id == identifier, workers.c.reaper.is_(None))
            .values(beat=workers.c.beat + 1)
        )

    def fence(self, identifier: str, beat: int, reaper: str) -> bool:
        """Takes a process for dead unless its beat has changed: from now on it writes nothing.

        Waits for the writes that it has begun.
        """
        return self._update(
            sa.update(workers)
            .where(workers.c.id == identifier, workers.c.beat == beat, workers.c.reaper.is_(None))
            .values(reaper=reaper, name=None)
        )

    def adopt(self, identifier: str, before: str, reaper: str) -> bool:
        """Hands the duties for a dead process from one reaper to another."""
        return self._update(
            sa.update(workers)
            .where(workers.c.id == identifier, workers.c.reaper == before)
            .values(reaper=reaper)
        )

    def remove(self, identifier: str) -> None:
        """Forgets a process that has ended, or that nobody expects back."""
        with self._engine.begin() as connection:
            connection.execute(sa.delete(workers).where(workers.c.id == identifier))

    def _update(self, statement: sa.Update) -> bool:
        with self._engine.begin() as connection:
            return connection.execute(statement).rowcount == 1


def holds(connection: sa.Connection, identifier: str) -> bool:
    """Whether a process may write, which stays true until the connection's transaction ends.

    A reader's lock on the row's key: heartbeats pass it, `fence` waits for it, as it changes a
    unique column. SQLite has one writer at a time anyway.
    """
    query = sa.select(workers.c.reaper).where(workers.c.id == identifier)
    row = connection.execute(query.with_for_update(read=True, key_share=True)).first()
    return row is not None and row.reaper is None
