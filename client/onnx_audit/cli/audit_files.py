"""An audit of files on this machine: the options that ask for it, its start and its course."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click

from onnx_audit import v1
from onnx_audit.cli.distortion_options import apply, distortion_options
from onnx_audit.cli.events import EventView
from onnx_audit.cli.head_options import head_options
from onnx_audit.cli.options import CommandT, seconds, spec_options
from onnx_audit.cli.transfer_options import apply_transfer, transfer_options
from onnx_audit.cli.units_options import apply_units, units_options
from onnx_audit.client import Client
from onnx_audit.configs import load_auditor_configs
from onnx_audit.errors import FailedPrecondition
from onnx_audit.onnx_files import external_locations
from onnx_audit.policies import PolicyLike
from onnx_audit.probes import Probes, load_probes
from onnx_audit.report_calls import ReportLike
from onnx_audit.requests import auditor_configs, is_content_name
from onnx_audit.status import require_success


@dataclass(frozen=True)
class AuditFiles:
    """What the options ask for; their help says what each is."""

    model: Path
    probes_path: Path
    auditors: str | None
    config_path: Path | None
    seed: int
    distortion: v1.DistortionConfig
    units: v1.UnitsConfig
    transfer: v1.TransferConfig
    spec: v1.InputSpec
    linear_head: v1.LinearHeadConfig | None
    fresh: bool
    timeout: float | None

    def load(self, default: Sequence[str] = ("distortion",)) -> LoadedFiles:
        """Reads what can be read before a service is needed.

        Args:
            default: The auditors to run where neither an option nor a file names any.

        Raises:
            ConfigError: Options do not belong together.
            ModelFileError: The model is not ONNX.
            ProbeError: The probes cannot be used.
        """
        configs = chosen_configs(
            self.auditors, self.config_path, default, self.distortion, self.units, self.transfer
        )
        external_locations(self.model)  # says at once whether it is ONNX
        return LoadedFiles(self, configs, load_probes(self.probes_path))


@dataclass(frozen=True)
class LoadedFiles:
    """What is asked for, with its settings and probes read."""

    asked: AuditFiles
    configs: v1.AuditorConfigs
    probes: Probes

    def audit(
        self,
        client: Client,
        view: EventView,
        *,
        model: v1.Model | None = None,
        policy: PolicyLike | None = None,
        baseline: ReportLike | None = None,
    ) -> v1.Audit:
        """Runs the audit and returns it, succeeded.

        Args:
            client: The service.
            view: Shows how it goes.
            model: Another model, already registered, in the place of the one asked for.
            policy: Rules that the report is held against.
            baseline: The report that the policy compares with.

        Raises:
            AuditFailed: It failed.
            AuditCancelled: It was cancelled.
        """
        asked = self.asked
        for note in self.probes.notes:
            view.say(f"{asked.probes_path}: {note}")
        if model is None:
            model = client.upload_model(asked.model, progress=view.upload)
        configs = v1.AuditorConfigs()
        configs.CopyFrom(self.configs)
        upload_peers(client, asked.model, configs, view)
        audit = client.audit(
            model,
            client.upload_probes(self.probes, progress=view.upload),
            auditors=configs,
            input_spec=asked.spec,
            seed=asked.seed,
            timeout=asked.timeout,
            linear_head=asked.linear_head,
            fresh=asked.fresh,
            policy=policy,
            baseline=baseline,
        )
        return follow(client, audit, view)


def audit_options(command: CommandT) -> CommandT:
    """Adds MODEL and the options of an audit, joined into the parameter `asked`."""

    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as click calls it
        names = [field.name for field in dataclasses.fields(AuditFiles)]
        asked = AuditFiles(**{name: kwargs.pop(name) for name in names})
        return command(*args, asked=asked, **kwargs)

    for option in reversed(_OPTIONS):
        wrapper = option(wrapper)
    return wrapper  # type: ignore[return-value] # the decorators keep what the caller sees


def chosen_configs(
    auditors: str | None,
    config: Path | None,
    default: Sequence[str],
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
        configs = auditor_configs(default)
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


_OPTIONS: Final[tuple[Any, ...]] = (
    click.argument("model", type=click.Path(exists=True, dir_okay=False, path_type=Path)),
    click.option(
        "--probes",
        "probes_path",
        metavar="PATH",
        required=True,
        type=click.Path(exists=True, path_type=Path),
        help="Inputs to audit on: .npz or .safetensors with inputs (and labels), or a folder of "
        "images with a subfolder per label.",
    ),
    click.option(
        "--auditors",
        metavar="NAME[,NAME...]",
        help="distortion, lipschitz, units, transfer.  [default: those in --config, else "
        "distortion, and with a policy those that its gates look at]",
    ),
    click.option(
        "--config",
        "config_path",
        metavar="FILE",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="YAML file with settings of auditors, such as `distortion: {norms: [NORM_LINF], "
        "budget: quick}`.",
    ),
    click.option(
        "--seed", type=click.IntRange(min=0), default=0, help="Seed of every random draw."
    ),
    distortion_options,
    units_options,
    transfer_options,
    spec_options,
    head_options,
    click.option(
        "--fresh",
        is_flag=True,
        help="Compute every section anew, even where an earlier audit has computed the same.",
    ),
    click.option(
        "--timeout",
        metavar="DURATION",
        callback=seconds,
        help="Longest run, such as 90s, 10m or 2h.",
    ),
)
