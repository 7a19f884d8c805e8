"""`onnx-audit demo`: from nothing to a report."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Final

import click
import numpy as np
from rich.console import Console

from onnx_audit import v1
from onnx_audit.cli.audit_files import follow
from onnx_audit.cli.demo_models import PROBES, load_digits, train_models
from onnx_audit.cli.distortion_view import quantile
from onnx_audit.cli.events import event_view
from onnx_audit.cli.figures import estimate_text, norm_name, number
from onnx_audit.cli.options import Connection, connection_options
from onnx_audit.cli.output import write_report

DEFAULT_OUT: Final = Path("onnx-audit-demo")


@click.command(
    epilog=("\b\nExamples:\n  onnx-audit demo\n  onnx-audit demo --out /tmp/demo --seed 7")
)
@click.option(
    "--out",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    default=DEFAULT_OUT,
    help="Folder for models, probes and report.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Seed of training and audit.")
@connection_options
def demo(*, out: Path, seed: int, connection: Connection) -> None:
    """Train three small networks on handwritten digits and audit the first.

    Takes a minute or two, needs no other files, and leaves models, probes and report.json.
    """
    digits = load_digits(seed)
    out.mkdir(parents=True, exist_ok=True)
    trained = train_models(digits, out, seed, click.echo)
    probes_path = out / "probes.npz"
    inputs, labels = digits.test_x[:PROBES], digits.test_y[:PROBES]
    np.savez(probes_path, inputs=inputs, labels=labels)
    click.echo(f"wrote {probes_path}: {len(inputs)} held-out digits, pixels in [0, 1]")
    model = trained[0]
    spec = v1.InputSpec(lower=[0.0], upper=[1.0])
    click.echo(f"auditing {model.path}")
    with connection.open() as client, event_view(Console(stderr=True)) as view:
        audit = client.audit(
            client.upload_model(model.path, progress=view.upload),
            client.upload_probes(probes_path, progress=view.upload),
            auditors=("distortion", "lipschitz"),
            input_spec=spec,
            seed=seed,
        )
        audit = follow(client, audit, view)
        report = client.report(audit)
        written = write_report(client, report, out)
    click.echo()
    for line in (*findings(report.distortion), *certified(report.lipschitz)):
        click.echo(line)
    click.echo()
    for path in written:
        click.echo(f"wrote {path}")
    click.echo(
        "\nRead it:            onnx-audit report show "
        f"{written[0]}\n"
        f"Do it again:        onnx-audit run {model.path} --probes {probes_path} --box 0,1\n"
        "On your own model:  onnx-audit run MODEL.onnx --probes PROBES.npz --box LOW,HIGH"
    )


def findings(section: v1.DistortionSection) -> list[str]:
    """What a distortion section found, in sentences."""
    lines = [
        f"Clean accuracy: {estimate_text(section.clean_accuracy)} on {section.probe_count} probes."
    ]
    for norm in section.norms:
        median, name = quantile(norm, 0.5), norm_name(norm.norm)
        lines.append(
            f"Median {name} distortion: {estimate_text(median)}, "
            f"mean rms {estimate_text(norm.mean_rms)}."
        )
        if median.ByteSize() and math.isfinite(median.value):
            lines.append(
                f"So for half of the digits that the network reads rightly, a change of {name} "
                f"length {number(median.value)} or less over {section.dimension} pixels between "
                "0 and 1 makes it read another digit."
            )
    return lines


def certified(section: v1.LipschitzSection) -> list[str]:
    """What a lipschitz section proves, in sentences."""
    return [
        f"Certified {norm_name(row.norm)} radius: {estimate_text(row.mean)} on average. Up to a "
        "probe's own radius no change at all makes the network read another digit"
        + (
            f"; what was found lies {number(row.sandwich.value)} times as far (median)."
            if row.sandwich.count
            else "."
        )
        for row in section.certificates
        if row.norm == v1.NORM_L2
    ]
