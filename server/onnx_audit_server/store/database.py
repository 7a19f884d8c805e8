"""The one database: records and queue live in it, so that an audit and its job begin together."""

from __future__ import annotations

import sqlite3
import time
from importlib import resources
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config

MIGRATION_LOCK = 0x6F6E6E78
"""Key of the advisory lock that lets one process at a time migrate a PostgreSQL database."""

WAL_ATTEMPTS = 200
WAL_PAUSE = 0.05
"""Seconds between two attempts."""


def connect(url: str) -> sa.Engine:
    """Opens the database with the habits that several processes on it need."""
    engine = sa.create_engine(url, pool_pre_ping=not url.startswith("sqlite"), pool_size=10)
    if engine.dialect.name == "sqlite":
        sa.event.listen(engine, "connect", _prepare_sqlite)
        sa.event.listen(engine, "begin", _begin_immediate)
    return engine


def migrate(engine: sa.Engine) -> None:
    """Brings the tables to their present form; safe to call from several processes at once."""
    config = Config()
    config.set_main_option(
        "script_location", str(resources.files("onnx_audit_server.store") / "migrations")
    )
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(sa.text(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})"))
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


def _begin_immediate(connection: sa.Connection) -> None:
    # Taking the write lock at the start avoids deadlocks of two readers that both want to write.
    read_only = connection.get_execution_options().get("read_only", False)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")
