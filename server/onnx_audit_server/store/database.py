"""The one database: records and queue live in it, so that an audit and its job begin together."""

from __future__ import annotations

import sqlite3
import time
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from onnx_audit.version import __version__
from onnx_audit_server import metrics

if TYPE_CHECKING:
    from alembic.config import Config

VERSION_TABLE = "onnx_audit_version"
MIGRATION_LOCK = 0x6F6E6E78
"""Key of the advisory lock that lets one process at a time migrate a PostgreSQL database."""

SOON = {
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
}
"""Makes PostgreSQL's client notice within seconds that the server is gone without a word."""

IDLE_SECONDS = 10.0
"""How long a transaction on PostgreSQL may wait for its client before the server gives it up.

One whose process stands still, or whose machine is gone, keeps its locks from everybody else. By
the time that others take such a worker for dead they are free.
"""

_MIGRATIONS = Path(str(resources.files("onnx_audit_server.store") / "migrations"))

WAL_ATTEMPTS = 200
WAL_PAUSE = 0.05
"""Seconds between two attempts."""


def connect(url: str) -> sa.Engine:
    """Opens the database with the habits that several processes on it need."""
    if url.startswith("sqlite"):
        engine = sa.create_engine(url, pool_size=10)
    else:
        engine = sa.create_engine(url, pool_pre_ping=True, pool_size=10, connect_args=SOON)
        sa.event.listen(engine, "connect", _free_locks_soon)
    if engine.dialect.name == "sqlite":
        sa.event.listen(engine, "connect", _prepare_sqlite)
        sa.event.listen(engine, "begin", _begin_immediate)
    sa.event.listen(engine, "handle_error", _count_error)
    return engine


def reader(engine: sa.Engine) -> sa.Engine:
    """The same database for reads whose every statement may see a later state than the last.

    On PostgreSQL they then cost one trip each, not one for the beginning and one for the end of a
    transaction as well.
    """
    if engine.dialect.name == "postgresql":
        return engine.execution_options(read_only=True, isolation_level="AUTOCOMMIT")
    return engine.execution_options(read_only=True)


def insert(connection: sa.Connection, table: sa.Table) -> postgresql.Insert | sqlite.Insert:
    """An INSERT that can say what to do about rows that are there already."""
    make = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    return make(table)


def lock(connection: sa.Connection, key: int, *, shared: bool = False) -> None:
    """Makes others who lock the same key wait until the transaction ends.

    On PostgreSQL alone, by an advisory lock: SQLite has one writer anyway.

    Args:
        connection: In a transaction.
        key: What is locked, a number of its own for each purpose.
        shared: Whether others may share it at the same time.
    """
    if connection.dialect.name == "postgresql":
        function = "pg_advisory_xact_lock_shared" if shared else "pg_advisory_xact_lock"
        connection.execute(sa.text(f"SELECT {function}({key})"))


def outlast(connection: sa.Connection) -> None:
    """Lets the transaction hold its locks for as long as its process is there, busy or paused.

    For what must not go on once they are free, and cannot be undone.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(sa.text("SET LOCAL idle_in_transaction_session_timeout = 0"))


class WrongFormError(RuntimeError):
    """The database does not have the form that this version works with."""


class NewerDatabaseError(WrongFormError):
    """The database was migrated by a newer version."""


@dataclass(frozen=True)
class Form:
    """The form of a database's tables.

    Attributes:
        found: The revision that the database is at; None where it is empty.
        needed: The revision that this version works with.
    """

    found: str | None
    needed: str

    @property
    def outdated(self) -> bool:
        """Whether it has to be migrated."""
        return self.found != self.needed

    def __str__(self) -> str:
        at = "is empty" if self.found is None else f"is at revision {self.found}"
        if not self.outdated:
            return f"the database {at}, as this version needs it"
        return f"the database {at}, this version needs {self.needed}: run `onnx-audit migrate`"


def form(engine: sa.Engine) -> Form:
    """Looks at the form of the tables.

    Raises:
        NewerDatabaseError: This version does not know it.
    """
    with engine.execution_options(read_only=True).begin() as connection:
        found = None
        if sa.inspect(connection).has_table(VERSION_TABLE):
            found = connection.execute(
                sa.select(sa.column("version_num")).select_from(sa.table(VERSION_TABLE))
            ).scalar()
    known = revisions()
    if found is not None and found not in known:
        raise NewerDatabaseError(
            f"the database is at revision {found}, which this version ({__version__}) does not "
            f"know; it knows those up to {known[-1]}. Run a newer version, or restore a backup"
        )
    return Form(found, known[-1])


def revisions() -> list[str]:
    """The revisions that this version knows, in their order, by the names of their files.

    Alembic would say the same, but takes longer to import than everything else that a start needs.
    """
    files = (_MIGRATIONS / "versions").glob("v*_*.py")
    return sorted(file.name.partition("_")[0].removeprefix("v") for file in files)


def require_current(engine: sa.Engine) -> None:
    """Sees to it that the database has the form that this version works with.

    Raises:
        WrongFormError: It has not; the text says what to do.
    """
    found = form(engine)
    if found.outdated:
        raise WrongFormError(str(found))


def _config() -> Config:
    from alembic.config import Config  # noqa: PLC0415 - see `revisions`

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    return config


def migrate(engine: sa.Engine) -> None:
    """Brings the tables to their present form; safe to call from several processes at once.

    Raises:
        NewerDatabaseError: They have a form that this version does not know.
    """
    if not form(engine).outdated:
        return
    from alembic import command  # noqa: PLC0415 - see `revisions`

    config = _config()
    with engine.begin() as connection:
        lock(connection, MIGRATION_LOCK)
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def _prepare_sqlite(connection: Any, _record: object) -> None:  # noqa: ANN401 - a DBAPI connection
    # SQLAlchemy's "begin" event starts transactions, not the driver.
    connection.isolation_level = None
    connection.execute("PRAGMA busy_timeout=30000")
    # Readers then never wait for the writer. On a new database the change fails at once, whatever
    # the timeout, while another process makes it.
    for attempt in range(WAL_ATTEMPTS):
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            break
        except sqlite3.OperationalError:
            if attempt == WAL_ATTEMPTS - 1:
                raise
            time.sleep(WAL_PAUSE)
    connection.execute("PRAGMA synchronous=NORMAL")


def _free_locks_soon(connection: psycopg.Connection, _record: object) -> None:
    # Not as options of the connection: proxies such as PgBouncer refuse those.
    connection.execute(
        f"SET idle_in_transaction_session_timeout = {int(IDLE_SECONDS * 1000)};"
        "SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5;"
        "SET tcp_keepalives_count = 3"
    )
    connection.commit()


def _count_error(context: sa.engine.ExceptionContext) -> None:
    # A row that was there already is an answer, not a fault.
    if not isinstance(context.original_exception, sqlite3.IntegrityError | psycopg.IntegrityError):
        metrics.STORE_ERRORS.labels("database").inc()


def _begin_immediate(connection: sa.Connection) -> None:
    # Taking the write lock at the start avoids deadlocks of two readers that both want to write.
    read_only = connection.get_execution_options().get("read_only", False)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")
