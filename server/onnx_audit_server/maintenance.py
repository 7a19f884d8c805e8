"""The commands that look after a service's data: `migrate` and `gc`."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from onnx_audit_server.options import SERVICE_ERROR, USAGE_ERROR, read_settings, store_options

NEEDED = 1


@click.command(
    epilog="\b\n"
    "Examples:\n"
    "  onnx-audit migrate --database-url postgresql+psycopg://audit@db/audit\n"
    "  onnx-audit migrate --check\n"
    "\b\n"
    "With --check the exit status is 0 where nothing is to be done, 1 where the database is older "
    "than this version needs, 3 where it is newer."
)
@store_options
@click.option("--check", is_flag=True, help="Say whether it is needed; change nothing.")
def migrate(*, check: bool, **options: Any) -> None:  # noqa: ANN401 - as click gives them
    """Bring the database to the form that this version needs.

    Any number of processes may do so at once. Back the database up first.
    """
    from onnx_audit_server.jobs import queue  # noqa: PLC0415 - --help should not wait for it
    from onnx_audit_server.store import database  # noqa: PLC0415

    settings = read_settings(options)
    settings.data.mkdir(parents=True, exist_ok=True)
    engine = database.connect(settings.records_url)
    try:
        before = database.form(engine)
        if check:
            click.echo(str(before))
            sys.exit(NEEDED if before.outdated else 0)
        database.migrate(engine)
        queue.migrate(settings.records_url)
        click.echo(str(database.form(engine)))
    except (database.NewerDatabaseError, OSError) as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(SERVICE_ERROR)
    finally:
        engine.dispose()


@click.command(
    epilog="\b\n"
    "Examples:\n"
    "  onnx-audit gc --dry-run\n"
    "  ONNX_AUDIT_RETAIN_AUDITS=31536000 onnx-audit gc --json\n"
    "\b\n"
    "What expires when is set by ONNX_AUDIT_RETAIN_AUDITS, _INPUTS and _BLOBS, which must be the "
    "same for this command as for the servers and workers."
)
@store_options
@click.option("--dry-run", is_flag=True, help="Count what would be removed; remove nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def gc(*, dry_run: bool, as_json: bool, **options: Any) -> None:  # noqa: ANN401 - as click gives them
    """Remove what has expired: audits, inputs, blobs that nothing refers to.

    Servers do it by themselves; see the setting gc_interval. Running servers and workers are not
    disturbed.
    """
    from onnx_audit_server.jobs.queue import JobQueue  # noqa: PLC0415 - --help should not wait for it
    from onnx_audit_server.retention.janitor import BusyError, Janitor  # noqa: PLC0415
    from onnx_audit_server.store import database  # noqa: PLC0415
    from onnx_audit_server.store.blobs import BlobStore  # noqa: PLC0415
    from onnx_audit_server.store.uses import Uses  # noqa: PLC0415

    settings = read_settings(options)
    if not settings.database_url and not (settings.data / "onnx-audit.sqlite").exists():
        click.echo(f"Error: there is no service's data in {settings.data}", err=True)
        sys.exit(USAGE_ERROR)
    engine = database.connect(settings.records_url)
    try:
        database.require_current(engine)
        uses = Uses(engine, settings.retain_blobs)
        blobs = BlobStore(settings.data, settings.blob_url, uses)
        janitor = Janitor(settings, engine, blobs, JobQueue(engine))
        figures = janitor.collect(dry_run=dry_run)
    except (database.WrongFormError, BusyError, OSError) as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(SERVICE_ERROR)
    finally:
        engine.dispose()
    if as_json:
        shown = {
            "removed": figures.counts,
            "freed_bytes": figures.freed_bytes,
            "kept_blobs": figures.kept_blobs,
            "kept_bytes": figures.kept_bytes,
            "dry_run": dry_run,
        }
        click.echo(json.dumps(shown))
        return
    click.echo("would remove:" if dry_run else "removed:")
    for kind, count in figures.counts.items():
        click.echo(f"  {kind.replace('_', ' '):<10} {count:>9,}")
    click.echo(f"bytes freed: {figures.freed_bytes:,}")
    click.echo(f"blobs kept:  {figures.kept_blobs:,} of {figures.kept_bytes:,} bytes")
