"""`onnx-audit compare`: what moved between two releases."""

from __future__ import annotations

from typing import Final

import click
from rich.console import Console
from rich.markup import escape
from rich.text import Text

from onnx_audit import v1
from onnx_audit.cli.figures import estimate_text
from onnx_audit.cli.options import Connection, connection_options
from onnx_audit.cli.output import as_dict, people, print_json, report_source
from onnx_audit.cli.tables import print_table

_WORDS: Final = {
    v1.MOVEMENT_UNSPECIFIED: ("not known", "yellow"),
    v1.MOVEMENT_WITHIN_NOISE: ("within noise", "dim"),
    v1.MOVEMENT_BETTER: ("better", "green"),
    v1.MOVEMENT_WORSE: ("worse", "red"),
    v1.MOVEMENT_CHANGED: ("changed", "cyan"),
}


@click.command(
    epilog=(
        "\b\n"
        "Examples:\n"
        "  onnx-audit compare released/report.json onnx-audit-report/\n"
        "  onnx-audit compare audits/0190a001 audits/0190f3c2 --server audits.example.org:50051"
    )
)
@click.argument("baseline", metavar="OLDER")
@click.argument("candidate", metavar="NEWER")
@connection_options
@click.option("--json", "json_output", is_flag=True, help="Print JSON, nothing else.")
def compare(*, baseline: str, candidate: str, connection: Connection, json_output: bool) -> None:
    """Say what moved from OLDER to NEWER: reports, their folders, or audits.

    A difference is within noise when its 95 % interval over the choice of probes holds 0.
    """
    older, newer = report_source(baseline), report_source(candidate)
    with connection.open() as client:
        found = client.compare(older, newer)
    if json_output:
        print_json(as_dict(found))
    else:
        _print(people(json_output=False), found)


def _print(console: Console, found: v1.CompareReportsResponse) -> None:
    for note in found.notes:
        console.print(f"[yellow]Note[/] {escape(note)}", highlight=False)
    print_table(
        console,
        "",
        ("figure", "older", "newer", "difference", ""),
        [
            (
                row.label,
                estimate_text(row.baseline),
                estimate_text(row.candidate),
                estimate_text(row.difference),
                Text(*_WORDS[row.movement]),
            )
            for row in found.comparisons
        ],
    )
    for what, paths in (("older", found.baseline_only), ("newer", found.candidate_only)):
        if paths:
            console.print(f"in the {what} one alone: {escape(', '.join(paths))}", highlight=False)
