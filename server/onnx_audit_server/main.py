"""The commands that run the service: `serve` and `worker`."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from pydantic import ValidationError

from onnx_audit_server.settings import Settings, default_data_dir

USAGE_ERROR = 2
SERVICE_ERROR = 3
ENVIRONMENT = (
    "Every option can be set in the environment too: --data is ONNX_AUDIT_DATA, --listen is "
    "ONNX_AUDIT_LISTEN, and so on."
)


def common_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options that every process of the service has."""
    options = [
        click.option(
            "--data",
            type=click.Path(file_okay=False, path_type=Path),
            help=f"Folder for database, blobs and scratch space.  [default: {default_data_dir()}]",
        ),
        click.option(
            "--database-url",
            help="Records and queue, such as postgresql+psycopg://user@host/db.  "
            "[default: SQLite in the data folder]",
        ),
        click.option(
            "--blob-url",
            help="Blob store, such as s3://bucket/prefix.  [default: the data folder]",
        ),
        click.option(
            "--http",
            help="Address of the console, /metrics and /healthz, or none.  "
            "[default: 127.0.0.1:9464]",
        ),
        click.option("--worker-name", help="Stable name of the worker.  [default: local]"),
        click.option("--slots", type=int, help="Shards that run at once.  [default: 1]"),
        click.option("--device", help="cpu, cuda or cuda:N.  [default: cpu]"),
        click.option("--threads", type=int, help="CPU threads of a shard.  [default: all]"),
        click.option(
            "--drain-timeout",
            type=float,
            help="Seconds that running shards have after SIGTERM.  [default: 30]",
        ),
        click.option(
            "--log-level",
            type=click.Choice(["debug", "info", "warning", "error"]),
            help="Least severe level that is logged.  [default: info]",
        ),
        click.option(
            "--ready-file",
            type=click.Path(dir_okay=False, path_type=Path),
            help="Written, as JSON with the addresses, once the process serves.",
        ),
        click.option(
            "--stop-on-eof",
            is_flag=True,
            help="Stop when standard input closes, as after SIGTERM: for whoever starts the "
            "process as a part of its own.",
        ),
    ]
    return functools.reduce(lambda wrapped, option: option(wrapped), reversed(options), command)


@click.command(
    epilog="\b\n"
    "Examples:\n"
    "  onnx-audit serve\n"
    "  onnx-audit serve --listen 127.0.0.1:6000 --data /var/lib/onnx-audit\n"
    "  onnx-audit serve --no-worker --database-url postgresql+psycopg://audit@db/audit\n"
    "\n" + ENVIRONMENT
)
@common_options
@click.option("--listen", help="Address of the gRPC server.  [default: 127.0.0.1:50051]")
@click.option("--no-worker", is_flag=True, help="Serve the API alone; run `worker` elsewhere.")
@click.option("--no-reflection", is_flag=True, help="Do not describe the API to tools.")
def serve(no_worker: bool, no_reflection: bool, **options: Any) -> None:  # noqa: ANN401 - as click gives them
    """Run the service: gRPC API, metrics, and a worker.

    Without further options everything lives in one folder, and audits that were under way when the
    process ended go on when it starts again.
    """
    if no_reflection:
        options["reflection"] = False
    _run(options, api=True, worker=not no_worker)


@click.command(
    epilog="\b\n"
    "Example:\n"
    "  onnx-audit worker --worker-name gpu-0 --device cuda --database-url ... --blob-url ...\n"
    "\n" + ENVIRONMENT
)
@common_options
def worker(**options: Any) -> None:  # noqa: ANN401 - as click gives them
    """Run a worker alone; it takes work from the database that servers share with it."""
    _run(options, api=False, worker=True)


def _run(options: dict[str, Any], *, api: bool, worker: bool) -> None:
    # The stores and queues are heavy; --help should not wait for them.
    from onnx_audit_server import service  # noqa: PLC0415

    ready_file = options.pop("ready_file")
    stop_on_eof = options.pop("stop_on_eof")
    given = {name: value for name, value in options.items() if value is not None}
    try:
        settings = Settings(**given)
    except ValidationError as error:
        for problem in error.errors():
            name = ".".join(str(part) for part in problem["loc"])
            click.echo(f"Error: setting {name}: {problem['msg']}", err=True)
        sys.exit(USAGE_ERROR)
    try:
        service.run(
            settings, api=api, worker=worker, ready_file=ready_file, stop_on_eof=stop_on_eof
        )
    except (service.FolderInUseError, OSError, RuntimeError) as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(SERVICE_ERROR)


@click.group()
def main() -> None:
    """Run the onnx-audit service."""


main.add_command(serve)
main.add_command(worker)
