"""`onnx-audit audits`: what the service has done and is doing."""

from __future__ import annotations

import itertools
from datetime import datetime

import click
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console

from onnx_audit import v1
from onnx_audit.cli.events import event_view
from onnx_audit.cli.figures import short_digest, state_name
from onnx_audit.cli.head_options import config_text
from onnx_audit.cli.options import Connection, connection_options
from onnx_audit.cli.output import as_dict, people, print_json, print_rows
from onnx_audit.cli.policy_view import verdict_name
from onnx_audit.cli.report_view import spec_text
from onnx_audit.cli.tables import print_facts
from onnx_audit.status import require_success


@click.group()
def audits() -> None:
    """List, show, watch and cancel audits."""


@audits.command(
    "list",
    epilog=(
        "\b\n"
        "Examples:\n"
        "  onnx-audit audits list\n"
        "  onnx-audit audits list --server audits.example.org:50051 --limit 10 --json"
    ),
)
@click.option("--limit", type=click.IntRange(min=1), default=50, help="Most audits to list.")
@connection_options
@click.option("--json", "json_output", is_flag=True, help="Print JSON, nothing else.")
def list_audits(*, limit: int, connection: Connection, json_output: bool) -> None:
    """List audits, newest first."""
    with connection.open() as client:
        rows = list(itertools.islice(client.audits(), limit))
    if json_output:
        print_json([as_dict(audit) for audit in rows])
        return
    print_rows(
        ("audit", "state", "shards", "model", "probes", "created"),
        [
            (
                audit.name,
                state_name(audit.state),
                f"{audit.progress.shards_done}/{audit.progress.shards_total}",
                short_digest(audit.model.removeprefix("models/")),
                short_digest(audit.probe_set.removeprefix("probes/")),
                time_text(audit.create_time),
            )
            for audit in rows
        ],
    )


@audits.command(
    "show",
    epilog=(
        "\b\n"
        "Examples:\n"
        "  onnx-audit audits show 0190f3c2\n"
        "  onnx-audit audits show audits/0190f3c2 --json"
    ),
)
@click.argument("audit")
@connection_options
@click.option("--json", "json_output", is_flag=True, help="Print JSON, nothing else.")
def show_audit(*, audit: str, connection: Connection, json_output: bool) -> None:
    """Show AUDIT, a name such as audits/ID or the ID alone."""
    with connection.open() as client:
        found = client.get_audit(audit)
    if json_output:
        print_json(as_dict(found))
    else:
        _print_audit(people(json_output=False), found)


@audits.command(
    "watch",
    epilog=(
        "\b\nExample:\n  onnx-audit audits watch audits/0190f3c2 --server audits.example.org:50051"
    ),
)
@click.argument("audit")
@connection_options
def watch_audit(*, audit: str, connection: Connection) -> None:
    """Follow AUDIT from its first event until it ends; Ctrl-C leaves it running."""
    with connection.open() as client, event_view(Console(stderr=True)) as view:
        for event in client.watch(audit):
            view.event(event)
        require_success(client.get_audit(audit))


@audits.command("cancel", epilog=("\b\nExample:\n  onnx-audit audits cancel audits/0190f3c2"))
@click.argument("audit")
@connection_options
def cancel_audit(*, audit: str, connection: Connection) -> None:
    """Stop AUDIT."""
    with connection.open() as client:
        found = client.cancel(audit)
    click.echo(f"{found.name} {state_name(found.state)}")


def time_text(moment: Timestamp) -> str:
    """A moment in local time; empty if there is none."""
    if not moment.seconds:
        return ""
    return datetime.fromtimestamp(moment.seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _print_audit(console: Console, audit: v1.Audit) -> None:
    rows = [
        ("audit", audit.name),
        ("called", audit.display_name),
        ("state", state_name(audit.state)),
        ("error", audit.error.message),
        ("model", audit.model),
        ("probe set", audit.probe_set),
        ("auditors", ", ".join(field.name for field, _ in audit.auditors.ListFields())),
        ("input spec", spec_text(audit.input_spec)),
        (
            "linear head",
            config_text(audit.linear_head) if audit.HasField("linear_head") else "",
        ),
        ("worked out", "\n".join(audit.input_spec_notes)),
        ("seed", str(audit.seed)),
        ("shards", f"{audit.progress.shards_done} of {audit.progress.shards_total}"),
        ("created", time_text(audit.create_time)),
        ("started", time_text(audit.start_time)),
        ("ended", time_text(audit.end_time)),
        ("report", audit.report_digest),
        ("verdict", verdict_name(audit.verdict) if audit.verdict else ""),
    ]
    print_facts(console, rows)
