"""`onnx-audit report`: reports for people."""

from __future__ import annotations

import click

from onnx_audit.cli.options import Connection, connection_options
from onnx_audit.cli.output import as_dict, people, print_json, report_source
from onnx_audit.cli.report_view import print_report


@click.group()
def report() -> None:
    """Show reports."""


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
