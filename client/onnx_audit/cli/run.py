"""`onnx-audit run`: one audit from files to report."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click
from rich.console import Console
from rich.markup import escape

from onnx_audit import v1
from onnx_audit.cli.audit_files import AuditFiles, audit_options
from onnx_audit.cli.events import event_view
from onnx_audit.cli.figures import state_name
from onnx_audit.cli.options import Connection, connection_options
from onnx_audit.cli.output import as_dict, people, print_json, write_report
from onnx_audit.cli.report_view import print_report

DEFAULT_OUT: Final = Path("onnx-audit-report")


@click.command(
    epilog=(
        "\b\n"
        "Examples:\n"
        "  onnx-audit run model.onnx --probes probes.npz --box 0,1\n"
        "  onnx-audit run model.onnx --probes probes.npz --box 0,1 --norms l2,linf --budget quick\n"
        "  onnx-audit run model.onnx --probes probes.npz --box 0,1 --target-mode least-likely\n"
        "  onnx-audit run resnet.onnx --probes images/ --probe-layout hwc --model-layout chw \\\n"
        "      --box 0,1 --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225\n"
        "  onnx-audit run model.onnx --probes probes.npz --box 0,1 --auditors units\n"
        "  onnx-audit run model.onnx --probes probes.npz --box 0,1 --auditors transfer \\\n"
        "      --peer previous.onnx,release=1 --tags release=2\n"
        "  onnx-audit run autoencoder.onnx --probes probes.npz --box 0,1 --head auto\n"
        "  onnx-audit run model.onnx --probes probes.npz --spec spec.yaml --config audit.yaml \\\n"
        "      --server audits.example.org:50051 --timeout 2h"
    )
)
@audit_options
@click.option(
    "--out",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    default=DEFAULT_OUT,
    help="Folder for report.json, the adversarial examples, the training sets made of them and the "
    "pictures of units.",
)
@connection_options
@click.option("--json", "json_output", is_flag=True, help="Print the report as JSON, nothing else.")
def run(*, asked: AuditFiles, out: Path, connection: Connection, json_output: bool) -> None:
    """Audit MODEL, an ONNX file.

    Distortion is measured in probe space: stored values / divisor, inside the box. The model gets
    (probe - mean) / std in its own layout. What these options leave out is worked out where it is
    safe to, and said; where it is not, the audit is refused with the options to add.
    """
    files = asked.load()
    console = people(json_output=json_output)
    with connection.open() as client, event_view(Console(stderr=True)) as view:
        audit = files.audit(client, view)
        report = client.report(audit)
        written = write_report(client, report, out)
    if json_output:
        print_json(as_dict(report))
    else:
        print_report(console, report)
    print_outcome(console, audit, written)


def print_outcome(console: Console, audit: v1.Audit, written: list[Path]) -> None:
    """Says what was guessed and where the files are."""
    console.print("\n[bold]Outcome[/]")
    for note in audit.input_spec_notes:
        console.print(f"worked out: {escape(note)}", highlight=False)
    console.print(f"{audit.name} {state_name(audit.state)}", highlight=False)
    for path in written:
        console.print(f"wrote {escape(str(path))}", highlight=False, soft_wrap=True)
