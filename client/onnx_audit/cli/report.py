"""`onnx-audit report`: reports for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import click
from google.protobuf.message import Message

from onnx_audit import v1
from onnx_audit.cli.documents import FORMATS
from onnx_audit.cli.options import Connection, connection_options
from onnx_audit.cli.output import as_dict, people, print_json, report_source
from onnx_audit.cli.report_view import print_report
from onnx_audit.files import local_blob
from onnx_audit.policies import load_policy


@click.group()
def report() -> None:
    """Show reports, or make documents of them."""


@report.command(
    "show",
    epilog=(
        "\b\n"
        "Examples:\n"
        "  onnx-audit report show onnx-audit-report/report.json\n"
        "  onnx-audit report show audits/0190f3c2 --server audits.example.org:50051\n"
        "  onnx-audit report show onnx-audit-report/ --json"
    ),
)
@click.argument("source", metavar="AUDIT_OR_FILE")
@connection_options
@click.option("--json", "json_output", is_flag=True, help="Print the report as JSON.")
def show_report(*, source: str, connection: Connection, json_output: bool) -> None:
    """Show the report of an audit, or one in a report.json."""
    found = report_source(source)
    if isinstance(found, str):
        with connection.open() as client:
            found = client.report(found)
    if json_output:
        print_json(as_dict(found))
    else:
        print_report(people(json_output=False), found)


@report.command(
    "render",
    epilog=(
        "\b\n"
        "Examples:\n"
        "  onnx-audit report render onnx-audit-report/ --to html -o report.html\n"
        "  onnx-audit report render audits/0190f3c2 --to sarif --policy strict\n"
        "  onnx-audit report render new/ --to markdown --policy regression-only --baseline old/"
    ),
)
@click.argument("source", metavar="AUDIT|FILE|DIR")
@click.option(
    "--to",
    "form",
    required=True,
    type=click.Choice(tuple(FORMATS)),
    help="A page, a summary for pull requests, SARIF, JUnit XML, or the report's canonical JSON.",
)
@click.option(
    "--policy",
    metavar="FILE|NAME",
    help="Rules whose result the document shows.  [default: those of the audit, if it had any]",
)
@click.option(
    "--baseline", metavar="AUDIT|FILE|DIR", help="The report that this one is compared with."
)
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where to write it.  [default: standard output]",
)
@connection_options
def render_report(
    *,
    source: str,
    form: str,
    policy: str | None,
    baseline: str | None,
    output: Path | None,
    connection: Connection,
) -> None:
    """Make a document of the report of an audit, or of one in a report.json.

    Pictures come from the files beside a report.json, and from the service.
    """
    found = report_source(source)
    compared = None if baseline is None else report_source(baseline)
    rules = None if policy is None else load_policy(policy)
    with connection.open() as client:
        if isinstance(found, v1.Report):
            path = Path(source)
            client.upload_files(artefacts(found, path if path.is_dir() else path.parent))
        document = client.render(found, FORMATS[form], policy=rules, baseline=compared)
    if output is None:
        click.echo(document.content, nl=False)
    else:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_bytes(document.content)
        click.echo(f"wrote {output}", err=True)


def artefacts(found: v1.Report, folder: Path) -> list[Path]:
    """Files where `run` leaves them beside a report that are what the report refers to."""
    wanted = {blob.sha256: blob.size_bytes for blob in _blobs(found)}
    sizes = set(wanted.values())
    return [
        path
        for path in sorted((*folder.glob("*.safetensors"), *folder.glob("units/*/*")))
        if path.is_file() and path.stat().st_size in sizes and local_blob(path).sha256 in wanted
    ]


def _blobs(message: Message) -> Iterator[v1.BlobRef]:
    """Every blob that a message refers to."""
    if isinstance(message, v1.BlobRef):
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is None or isinstance(value, Mapping):
            continue
        for child in [value] if isinstance(value, Message) else value:
            yield from _blobs(child)
