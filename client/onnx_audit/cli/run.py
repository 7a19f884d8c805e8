"""`onnx-audit run`: one audit from files to report."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Final

import click
from rich.console import Console
from rich.markup import escape

from onnx_audit import v1
from onnx_audit.cli.distortion_options import apply, distortion_options
from onnx_audit.cli.events import EventView, event_view
from onnx_audit.cli.figures import state_name
from onnx_audit.cli.head_options import head_options
from onnx_audit.cli.options import Connection, connection_options, seconds, spec_options
from onnx_audit.cli.output import as_dict, people, print_json, write_report
from onnx_audit.cli.report_view import print_report
from onnx_audit.cli.transfer_options import apply_transfer, transfer_options
from onnx_audit.cli.units_options import apply_units, units_options
from onnx_audit.client import Client
from onnx_audit.configs import load_auditor_configs
from onnx_audit.errors import FailedPrecondition
from onnx_audit.onnx_files import external_locations
from onnx_audit.probes import load_probes
from onnx_audit.requests import auditor_configs, is_content_name
from onnx_audit.status import require_success

DEFAULT_OUT: Final = Path("onnx-audit-report")
EXIT_BY_VERDICT: Final = {
    v1.VERDICT_UNSPECIFIED: 0,
    v1.VERDICT_PASS: 0,
    v1.VERDICT_FAIL: 1,
    v1.VERDICT_INCONCLUSIVE: 2,
}


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
@click.argument("model", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--probes",
    "probes_path",
    metavar="PATH",
    required=True,
    type=click.Path(exists=True, path_type=Path),
    help="Inputs to audit on: .npz or .safetensors with inputs (and labels), or a folder of "
    "images with a subfolder per label.",
)
@click.option(
    "--auditors",
    metavar="NAME[,NAME...]",
    help="distortion, lipschitz, units, transfer.  [default: those in --config, else distortion]",
)
@click.option(
    "--config",
    "config_path",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="YAML file with settings of auditors, such as `distortion: {norms: [NORM_LINF], budget: "
    "quick}`.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Seed of every random draw.")
@distortion_options
@units_options
@transfer_options
@spec_options
@head_options
@click.option(
    "--timeout", metavar="DURATION", callback=seconds, help="Longest run, such as 90s, 10m or 2h."
)
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
@click.pass_context
def run(
    ctx: click.Context,
    *,
    model: Path,
    probes_path: Path,
    auditors: str | None,
    config_path: Path | None,
    seed: int,
    distortion: v1.DistortionConfig,
    units: v1.UnitsConfig,
    transfer: v1.TransferConfig,
    spec: v1.InputSpec,
    linear_head: v1.LinearHeadConfig | None,
    timeout: float | None,
    out: Path,
    connection: Connection,
    json_output: bool,
) -> None:
    """Audit MODEL, an ONNX file.

    Distortion is measured in probe space: stored values / divisor, inside the box. The model gets
    (probe - mean) / std in its own layout. What these options leave out is worked out where it is
    safe to, and said; where it is not, the audit is refused with the options to add.
    """
    configs = chosen_configs(auditors, config_path, distortion, units, transfer)
    external_locations(model)  # says at once whether it is ONNX
    probes = load_probes(probes_path)
    console = people(json_output=json_output)
    with connection.open() as client, event_view(Console(stderr=True)) as view:
        for note in probes.notes:
            view.say(f"{probes_path}: {note}")
        uploaded = client.upload_model(model, progress=view.upload)
        upload_peers(client, model, configs, view)
        probe_set = client.upload_probes(probes, progress=view.upload)
        audit = client.audit(
            uploaded,
            probe_set,
            auditors=configs,
            input_spec=spec,
            seed=seed,
            timeout=timeout,
            linear_head=linear_head,
        )
        audit = follow(client, audit, view)
        report = client.report(audit)
        written = write_report(client, report, out)
    if json_output:
        print_json(as_dict(report))
    else:
        print_report(console, report)
    _print_outcome(console, audit, written)
    ctx.exit(EXIT_BY_VERDICT.get(audit.verdict, 2))


def chosen_configs(
    auditors: str | None,
    config: Path | None,
    distortion: v1.DistortionConfig,
    units: v1.UnitsConfig,
    transfer: v1.TransferConfig,
) -> v1.AuditorConfigs:
    """The auditors to run with their settings; options stand in for values of the file.

    Raises:
        ConfigError: A name is unknown, or an option belongs to an auditor that does not run.
    """
    configs = load_auditor_configs(config) if config is not None else v1.AuditorConfigs()
    if auditors is not None:
        names = [name.strip() for name in auditors.split(",") if name.strip()]
        chosen = auditor_configs(names)
        for field, settings in configs.ListFields():
            if field.name in names:
                getattr(chosen, field.name).CopyFrom(settings)
        configs = chosen
    if not configs.ListFields():
        configs = auditor_configs(["distortion"])
    apply_transfer(transfer, distortion, configs)
    apply(distortion, configs)
    apply_units(units, configs)
    return configs


def upload_peers(client: Client, model: Path, configs: v1.AuditorConfigs, view: EventView) -> None:
    """Uploads the models to compare with that are files, and puts their names in the place.

    Files of the same content are one model to the service; the report calls them by their names.
    """
    reference = configs.units.embedding.model
    if reference and not is_content_name(reference, "models"):
        uploaded = client.upload_model(reference, progress=view.upload)
        configs.units.embedding.model = uploaded.name
    if not configs.HasField("transfer"):
        return
    configs.transfer.display_name = configs.transfer.display_name or model.stem
    for peer in configs.transfer.peers:
        if not is_content_name(peer.model, "models"):
            peer.display_name = peer.display_name or Path(peer.model).stem
            peer.model = client.upload_model(peer.model, progress=view.upload).name


def follow(client: Client, audit: v1.Audit, view: EventView) -> v1.Audit:
    """Shows an audit's events until it succeeds; Ctrl-C cancels it, a second one leaves.

    Raises:
        AuditFailed: It failed.
        AuditCancelled: It was cancelled.
        KeyboardInterrupt: Interrupted twice.
    """
    seen = 0
    interrupted = False
    while True:
        try:
            for event in client.watch(audit, seen):
                seen = event.sequence
                view.event(event)
            return require_success(client.get_audit(audit))
        except KeyboardInterrupt:
            if interrupted:
                raise
            interrupted = True
            view.say(f"cancelling {audit.name}; press Ctrl-C again to leave at once")
            with contextlib.suppress(FailedPrecondition):  # it has just ended otherwise
                client.cancel(audit)


def _print_outcome(console: Console, audit: v1.Audit, written: list[Path]) -> None:
    """Says what was guessed, what the policy says, and where the files are."""
    console.print("\n[bold]Outcome[/]")
    for note in audit.input_spec_notes:
        console.print(f"worked out: {escape(note)}", highlight=False)
    verdict = v1.Verdict.Name(audit.verdict).removeprefix("VERDICT_")
    said = f"verdict {verdict}" if audit.verdict else "no policy was applied"
    console.print(f"{audit.name} {state_name(audit.state)}, {said}", highlight=False)
    for path in written:
        console.print(f"wrote {escape(str(path))}", highlight=False, soft_wrap=True)
