"""Databases of other versions, and several processes that migrate at once."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.script import ScriptDirectory
from click.testing import CliRunner

from onnx_audit_server.main import main
from onnx_audit_server.service import open_database
from onnx_audit_server.settings import Settings
from onnx_audit_server.store import database, tables


def run(*arguments: str | Path) -> tuple[int, str]:
    """Runs a command of the service in this process; returns its exit status and what it says."""
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    return done.exit_code, done.output


def stamp(folder: Path, revision: str) -> None:
    """Makes a database look as another version would have left it."""
    engine = sa.create_engine(f"sqlite:///{folder / 'onnx-audit.sqlite'}")
    with engine.begin() as connection:
        connection.execute(
            sa.text("UPDATE onnx_audit_version SET version_num = :to"), {"to": revision}
        )
    engine.dispose()


def test_check_says_what_is_needed_and_changes_nothing(tmp_path: Path) -> None:
    """Exit status 1 before a migration, 0 after it."""
    status, text = run("migrate", "--check", "--data", tmp_path)
    assert (status, "run `onnx-audit migrate`" in text) == (1, True)
    assert run("migrate", "--check", "--data", tmp_path)[0] == 1
    assert run("migrate", "--data", tmp_path)[0] == 0
    assert run("migrate", "--check", "--data", tmp_path)[0] == 0


def test_a_newer_database_is_left_alone(tmp_path: Path) -> None:
    """A server says that the database is newer, at which revision, and what to do; so do others."""
    run("migrate", "--data", tmp_path)
    stamp(tmp_path, "9999")
    command = [sys.executable, "-m", "onnx_audit_server", "serve", "--data", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert "at revision 9999" in done.stderr
    assert "Run a newer version" in done.stderr
    assert run("migrate", "--data", tmp_path)[0] == 3
    assert run("migrate", "--check", "--data", tmp_path)[0] == 3
    assert run("gc", "--data", tmp_path)[0] == 3


def test_an_older_database_is_named_where_nobody_migrates(tmp_path: Path) -> None:
    """Without auto_migrate a server ends and says which command to run."""
    settings = Settings(data=tmp_path, auto_migrate=False)
    with pytest.raises(database.WrongFormError, match="run `onnx-audit migrate`"):
        open_database(settings)
    run("migrate", "--data", tmp_path)
    open_database(settings).dispose()


def test_revisions_are_those_of_alembic() -> None:
    """Files, and the chain that alembic makes of them, in the same order."""
    chain = ScriptDirectory.from_config(database._config()).walk_revisions()
    assert database.revisions() == [revision.revision for revision in chain][::-1]


def test_every_earlier_form_can_be_migrated(tmp_path: Path) -> None:
    """From each revision on, the tables end up as the code declares them."""
    script = ScriptDirectory.from_config(database._config())
    for revision in script.walk_revisions():
        engine = database.connect(f"sqlite:///{tmp_path / revision.revision}.sqlite")
        config = database._config()
        with engine.begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, revision.revision)
        database.migrate(engine)
        found = sa.inspect(engine)
        for table in tables.metadata.sorted_tables:
            columns = {column["name"] for column in found.get_columns(table.name)}
            assert columns == {column.name for column in table.columns}, table.name
            indexes = {index["name"] for index in found.get_indexes(table.name)}
            assert {index.name for index in table.indexes} <= indexes, table.name
        engine.dispose()


def test_several_processes_migrate_at_once(tmp_path: Path) -> None:
    """Four processes on a new database all end well."""
    program = [sys.executable, "-m", "onnx_audit_server", "migrate", "--data", str(tmp_path)]

    def migrate(_: int) -> subprocess.CompletedProcess[str]:
        return subprocess.run(program, capture_output=True, text=True, check=False)

    with ThreadPoolExecutor(4) as threads:
        for done in threads.map(migrate, range(4)):
            assert done.returncode == 0, done.stderr
    assert run("migrate", "--check", "--data", tmp_path)[0] == 0
