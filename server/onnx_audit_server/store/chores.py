"""Work that one process of all does at a time, by a lease in the database."""

from __future__ import annotations

import sqlalchemy as sa

from onnx_audit_server.store.clock import now_us
from onnx_audit_server.store.tables import chores

LEASE = 300.0
"""Seconds for which a process has the work unless it renews; so long a dead one keeps it."""


class LostError(Exception):
    """The lease ran out and another process has the work."""


class Chore:
    """One kind of work, such as the garbage collection."""

    def __init__(self, engine: sa.Engine, name: str, holder: str) -> None:
        self._engine = engine
        self._name = name
        self._holder = holder

    def begin(self, interval: float = 0.0) -> bool:
        """Takes the work, unless another process has it or it was done within the interval."""
        moment = now_us()
        free = sa.and_(
            chores.c.name == self._name,
            chores.c.until_us <= moment,
            chores.c.done_us <= moment - round(interval * 1e6),
        )
        try:
            with self._engine.begin() as connection:
                known = sa.select(chores.c.name).where(chores.c.name == self._name)
                if connection.execute(known).scalar() is None:
                    row = {"name": self._name, "holder": "", "until_us": 0, "done_us": 0}
                    connection.execute(sa.insert(chores).values(row))
                taken = sa.update(chores).where(free).values(self._lease(moment))
                return bool(connection.execute(taken).rowcount)
        except sa.exc.IntegrityError:
            return False  # another process has just made the row, and has the work

    def renew(self) -> None:
        """Keeps the work.

        Raises:
            LostError: It is another's by now.
        """
        with self._engine.begin() as connection:
            mine = sa.and_(chores.c.name == self._name, chores.c.holder == self._holder)
            renewed = sa.update(chores).where(mine).values(self._lease(now_us()))
            if not connection.execute(renewed).rowcount:
                raise LostError(self._name)

    def end(self, *, done: bool) -> None:
        """Gives the work back."""
        with self._engine.begin() as connection:
            values: dict[str, object] = {"holder": "", "until_us": 0}
            if done:
                values["done_us"] = now_us()
            mine = sa.and_(chores.c.name == self._name, chores.c.holder == self._holder)
            connection.execute(sa.update(chores).where(mine).values(values))

    def _lease(self, moment: int) -> dict[str, object]:
        return {"holder": self._holder, "until_us": moment + round(LEASE * 1e6)}
