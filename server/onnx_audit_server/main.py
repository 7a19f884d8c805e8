"""The commands that run the service: `serve` and `worker`."""

from __future__ import annotations

import functools
import gc
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from onnx_audit_server import maintenance
from onnx_audit_server.access.commands import tokens
from onnx_audit_server.access.options import access_options
from onnx_audit_server.options import SERVICE_ERROR, USAGE_ERROR, read_settings, store_options

ENVIRONMENT = (
    "Every option can be set in the environment too: --data is ONNX_AUDIT_DATA, --listen is "
    "ONNX_AUDIT_LISTEN, and so on."
)


def common_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options that every process of the service has."""
    options = [
        click.option(
            "--http",
            help="Address of the console, /metrics and /healthz, or none.  "
            "[default: 127.0.0.1:9464]",
        ),
        click.option(
            "--health",
            help="Address of a plaintext gRPC port for health checks alone, or none.  "
            "[default: none]",
        ),
        click.option(
            "--worker-name", help="Name of the worker, its own on this database.  [default: local]"
        ),
        click.option(
            "--slots", type=int, help="Shards that run at once.  [default: one per device]"
        ),
        click.option("--device", help="cpu, cuda (all visible) or cuda:N.  [default: cpu]"),
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
    added = functools.reduce(lambda wrapped, option: option(wrapped), reversed(options), command)
    return store_options(added)


@click.command(
    epilog="\b\n"
    "Examples:\n"
    "  onnx-audit serve\n"
    "  onnx-audit serve --listen 127.0.0.1:6000 --data /var/lib/onnx-audit\n"
    "  onnx-audit serve --no-worker --database-url postgresql+psycopg://audit@db/audit\n"
    "\n" + ENVIRONMENT
)
@common_options
@access_options
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
@access_options
def worker(**options: Any) -> None:  # noqa: ANN401 - as click gives them
    """Run a worker alone; it takes work from the database that servers share with it."""
    _run(options, api=False, worker=True)


def _run(options: dict[str, Any], *, api: bool, worker: bool) -> None:
    # What is made while a process starts stays; to look for garbage among it takes a quarter of the
    # start. `service.run` ends the pause.
    gc.disable()
    # The stores and queues are heavy; --help should not wait for them.
    from onnx_audit_server import service  # noqa: PLC0415
    from onnx_audit_server.access.certificates import CertificateError  # noqa: PLC0415
    from onnx_audit_server.access.exposure import ExposedError  # noqa: PLC0415

    ready_file = options.pop("ready_file")
    stop_on_eof = options.pop("stop_on_eof")
    settings = read_settings(options)
    try:
        service.run(
            settings, api=api, worker=worker, ready_file=ready_file, stop_on_eof=stop_on_eof
        )
    except (ExposedError, CertificateError) as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(USAGE_ERROR)
    except (service.FolderInUseError, service.WorkerNameInUseError, OSError, RuntimeError) as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(SERVICE_ERROR)


@click.group()
def main() -> None:
    """Run the onnx-audit service."""


main.add_command(serve)
main.add_command(worker)
main.add_command(maintenance.migrate)
main.add_command(maintenance.gc)
main.add_command(tokens)
