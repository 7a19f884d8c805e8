"""`onnx-audit models`, `probes` and `upload`: what the service holds."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from onnx_audit.cli.audits import time_text
from onnx_audit.cli.events import event_view
from onnx_audit.cli.figures import shape_text
from onnx_audit.cli.options import Connection, connection_options
from onnx_audit.cli.output import as_dict, print_json, print_rows
from onnx_audit.onnx_files import external_locations
from onnx_audit.probes import load_probes

_JSON = click.option("--json", "json_output", is_flag=True, help="Print JSON, nothing else.")
_NAME = click.option("--name", help="What people call it.  [default: the file's name]")


@click.group()
def models() -> None:
    """List models."""


@models.command(
    "list",
    epilog=(
        "\b\n"
        "Examples:\n"
        "  onnx-audit models list\n"
        "  onnx-audit models list --server audits.example.org:50051 --json"
    ),
)
@connection_options
@_JSON
def list_models(*, connection: Connection, json_output: bool) -> None:
    """List the registered models, newest first."""
    with connection.open() as client:
        rows = list(client.models())
    if json_output:
        print_json([as_dict(model) for model in rows])
        return
    print_rows(
        ("model", "called", "weights", "nodes", "registered"),
        [
            (
                model.name,
                model.display_name,
                str(model.summary.parameter_count),
                str(model.summary.node_count),
                time_text(model.create_time),
            )
            for model in rows
        ],
    )


@click.group()
def probes() -> None:
    """List probe sets."""


@probes.command(
    "list",
    epilog=(
        "\b\n"
        "Examples:\n"
        "  onnx-audit probes list\n"
        "  onnx-audit probes list --server audits.example.org:50051 --json"
    ),
)
@connection_options
@_JSON
def list_probe_sets(*, connection: Connection, json_output: bool) -> None:
    """List the registered probe sets, newest first."""
    with connection.open() as client:
        rows = list(client.probe_sets())
    if json_output:
        print_json([as_dict(probe_set) for probe_set in rows])
        return
    print_rows(
        ("probe set", "called", "probes", "shape", "labels", "registered"),
        [
            (
                probe_set.name,
                probe_set.display_name,
                str(probe_set.summary.count),
                shape_text(list(probe_set.summary.shape)),
                "yes" if probe_set.summary.has_labels else "no",
                time_text(probe_set.create_time),
            )
            for probe_set in rows
        ],
    )


@click.group()
def upload() -> None:
    """Upload models and probe sets without auditing them."""


@upload.command(
    "model",
    epilog=(
        "\b\n"
        "Example:\n"
        '  onnx-audit upload model model.onnx --name "fraud-scorer 3.2" --tag team=risk'
    ),
)
@click.argument("path", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@_NAME
@click.option(
    "--tag", "tags", metavar="KEY=VALUE", multiple=True, help="Free tag; may be repeated."
)
@connection_options
@_JSON
def upload_model(
    *,
    path: Path,
    name: str | None,
    tags: tuple[str, ...],
    connection: Connection,
    json_output: bool,
) -> None:
    """Upload an ONNX file with its external data and print the model's name."""
    pairs = dict(tag.split("=", 1) for tag in tags if "=" in tag)
    if len(pairs) != len(tags):
        raise click.UsageError("expected tags of the form KEY=VALUE, each key once")
    external_locations(path)
    with connection.open() as client, event_view(Console(stderr=True)) as view:
        model = client.upload_model(path, display_name=name, tags=pairs, progress=view.upload)
    if json_output:
        print_json(as_dict(model))
    else:
        click.echo(model.name)


@upload.command(
    "probes",
    epilog=('\b\nExample:\n  onnx-audit upload probes probes.npz --name "held-out digits"'),
)
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@_NAME
@connection_options
@_JSON
def upload_probes(
    *, path: Path, name: str | None, connection: Connection, json_output: bool
) -> None:
    """Upload a .npz, .safetensors or folder of images and print the probe set's name."""
    loaded = load_probes(path, display_name=name)
    with connection.open() as client, event_view(Console(stderr=True)) as view:
        for note in loaded.notes:
            view.say(f"{path}: {note}")
        probe_set = client.upload_probes(loaded, progress=view.upload)
    if json_output:
        print_json(as_dict(probe_set))
    else:
        click.echo(probe_set.name)
