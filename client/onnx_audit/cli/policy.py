"""`onnx-audit policy`: policies checked, shown, and applied to reports that exist."""

from __future__ import annotations

from pathlib import Path

import click

from onnx_audit.cli.ci import announce
from onnx_audit.cli.documents import Documents, document_options
from onnx_audit.cli.options import Connection, connection_options
from onnx_audit.cli.output import as_dict, people, print_json, report_source
from onnx_audit.cli.policy_view import exit_status, print_result
from onnx_audit.cli.run import DEFAULT_OUT
from onnx_audit.policies import READY_MADE, load_policy, policy_text


@click.group()
def policy() -> None:
    """Check, show and apply policies."""


@policy.command("check", epilog="\b\nExample:\n  onnx-audit policy check policy.yaml")
@click.argument("source", metavar="FILE|NAME")
@connection_options
def check_policy(*, source: str, connection: Connection) -> None:
    """Check a policy: fields, types, and every expression against the report's schema."""
    rules = load_policy(source)
    with connection.open() as client:
        found = client.check_policy(rules)
    click.echo(
        f"{rules.label}: {len(found.gates)} gates, {len(found.waivers)} waivers, no mistakes"
    )


@policy.command("show", epilog="\b\nExample:\n  onnx-audit policy show strict > policy.yaml")
@click.argument("name", type=click.Choice(READY_MADE))
def show_policy(*, name: str) -> None:
    """Show a policy that comes with onnx-audit, as YAML to start from."""
    click.echo(policy_text(name), nl=False)


@policy.command(
    "apply",
    epilog=(
        "\b\n"
        "Examples:\n"
        "  onnx-audit policy apply policy.yaml onnx-audit-report/\n"
        "  onnx-audit policy apply regression-only audits/0190f3c2 --baseline audits/0190a001\n"
        "\n"
        "Exit status: as that of `onnx-audit gate`."
    ),
)
@click.argument("source", metavar="FILE|NAME")
@click.argument("report", metavar="REPORT|AUDIT")
@click.option(
    "--baseline", metavar="REPORT|AUDIT", help="What the policy compares the report with."
)
@click.option(
    "--out",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    default=DEFAULT_OUT,
    help="Folder for the documents of --format.",
)
@document_options
@connection_options
@click.option("--json", "json_output", is_flag=True, help="Print the result as JSON, nothing else.")
@click.pass_context
def apply_policy(
    ctx: click.Context,
    *,
    source: str,
    report: str,
    baseline: str | None,
    out: Path,
    documents: Documents,
    connection: Connection,
    json_output: bool,
) -> None:
    """Hold a report that exists against a policy; nothing is computed again."""
    rules = load_policy(source)
    found = report_source(report)
    compared = None if baseline is None else report_source(baseline)
    console = people(json_output=json_output)
    with connection.open() as client:
        result = client.evaluate_policy(found, rules, compared)
        if json_output:
            print_json(as_dict(result))
        else:
            print_result(console, result)
        announce(result, rules, machine_output=json_output)
        documents.write(console, client, found, result, rules, out, compared)
    ctx.exit(exit_status(result))
