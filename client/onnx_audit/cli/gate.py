"""`onnx-audit gate`: one step of a pipeline that lets a model pass or not."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click
from rich.console import Console

from onnx_audit import v1
from onnx_audit.cli.audit_files import AuditFiles, LoadedFiles, audit_options
from onnx_audit.cli.ci import announce
from onnx_audit.cli.documents import Documents, document_options
from onnx_audit.cli.events import EventView, event_view
from onnx_audit.cli.options import Connection, connection_options
from onnx_audit.cli.output import as_dict, people, print_json, report_source, write_report
from onnx_audit.cli.policy_view import exit_status, print_result
from onnx_audit.cli.run import DEFAULT_OUT, print_outcome
from onnx_audit.client import Client
from onnx_audit.policies import load_policy
from onnx_audit.report_calls import ReportLike
from onnx_audit.requests import is_content_name

_ONNX: Final = ".onnx"


@click.command(
    epilog=(
        "\b\n"
        "Examples:\n"
        "  onnx-audit gate model.onnx --probes probes.npz --box 0,1 --policy baseline\n"
        "  onnx-audit gate model.onnx --probes probes.npz --box 0,1 --policy regression-only \\\n"
        "      --baseline released.onnx --format html,sarif\n"
        "  onnx-audit gate model.onnx --probes probes.npz --policy policy.yaml \\\n"
        "      --baseline audits/0190f3c2 --server audits.example.org:50051\n"
        "\n"
        "\b\n"
        "Exit status:\n"
        "  0  every blocking gate holds or is set aside by a waiver\n"
        "  1  a blocking gate does not hold\n"
        "  2  a blocking gate could not be decided; wrong usage, files or policy\n"
        "  3  the service could not be reached or refused, or the audit failed"
    )
)
@audit_options
@click.option(
    "--policy",
    metavar="FILE|NAME",
    required=True,
    help="YAML file with gates and waivers, or a ready-made one: baseline, strict, "
    "regression-only.",
)
@click.option(
    "--baseline",
    metavar="REPORT|AUDIT|MODEL",
    help="What the policy compares with: a report.json or its folder, an audit, or a model, which "
    "is then audited first in the same way.",
)
@click.option(
    "--out",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    default=DEFAULT_OUT,
    help="Folder for report.json, what belongs to it, and the documents of --format.",
)
@document_options
@connection_options
@click.option("--json", "json_output", is_flag=True, help="Print the result as JSON, nothing else.")
@click.pass_context
def gate(
    ctx: click.Context,
    *,
    asked: AuditFiles,
    policy: str,
    baseline: str | None,
    out: Path,
    documents: Documents,
    connection: Connection,
    json_output: bool,
) -> None:
    """Audit MODEL, an ONNX file, and hold the report against a policy.

    Where nothing says which auditors, those run that the policy's gates look at.

    In GitHub Actions every gate that does not hold becomes an annotation, and the report becomes
    the step's summary.
    """
    rules = load_policy(policy)
    files = asked.load(rules.auditors)
    console = people(json_output=json_output)
    with connection.open() as client:
        client.check_policy(rules)
        with event_view(Console(stderr=True)) as view:
            compared = None if baseline is None else _baseline(client, baseline, files, view)
            audit = files.audit(client, view, policy=rules, baseline=compared)
        result = audit.policy_result
        print_outcome(console, audit, write_report(client, client.report(audit), out))
        if json_output:
            print_json(as_dict(result))
        else:
            print_result(console, result)
        announce(result, rules, machine_output=json_output)
        documents.write(console, client, audit, result, rules, out)
    ctx.exit(exit_status(result))


def _baseline(client: Client, source: str, files: LoadedFiles, view: EventView) -> ReportLike:
    """The report to compare with; that of a model is made first, in the way of the other."""
    model: v1.Model | None = None
    if is_content_name(source, "models"):
        model = v1.Model(name=source)
    elif Path(source).suffix == _ONNX:
        model = client.upload_model(source, progress=view.upload)
    if model is None:
        return report_source(source)
    view.say(f"auditing the baseline {source}")
    return files.audit(client, view, model=model)
