"""The command line against a service in this process: output, files and exit statuses."""

from __future__ import annotations

import functools
import io
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import safetensors.numpy
from click.testing import CliRunner, Result
from google.protobuf import json_format
from rich.console import Console
from tests.client.clients import FAST
from tests.client.fake_service import FakeService, rich_status, serving
from tests.client.models import write_model
from tests.client.reports import ARTEFACT, ROUNDED, TRAINING, distortion_section, full_report

import onnx_audit
from onnx_audit import Client, v1
from onnx_audit.cli import options
from onnx_audit.cli.app import cli
from onnx_audit.cli.demo import findings
from onnx_audit.cli.distortion_view import print_distortion
from onnx_audit.cli.output import as_dict

COMMANDS = [
    [],
    ["attest"],
    ["verify"],
    ["run"],
    ["demo"],
    ["audits"],
    ["audits", "list"],
    ["audits", "show"],
    ["audits", "watch"],
    ["audits", "cancel"],
    ["compare"],
    ["gate"],
    ["policy"],
    ["policy", "apply"],
    ["policy", "check"],
    ["policy", "show"],
    ["report"],
    ["report", "show"],
    ["models", "list"],
    ["probes", "list"],
    ["upload", "model"],
    ["upload", "probes"],
]


@pytest.fixture
def ready(service: FakeService, monkeypatch: pytest.MonkeyPatch) -> FakeService:
    """A service that answers every audit with the full report, and a CLI that retries quickly."""
    report = full_report()
    service.blobs[report.distortion.norms[0].artefact.sha256] = ARTEFACT
    service.blobs[report.distortion.norms[0].training_set.sha256] = TRAINING
    service.blobs[report.distortion.norms[0].rounded.training_set.sha256] = ROUNDED
    service.reports["audits/1/report"] = report
    service.events = [
        v1.AuditEvent(
            sequence=1,
            state_changed=v1.AuditEvent.StateChanged(state=v1.AUDIT_STATE_RUNNING),
        ),
        v1.AuditEvent(
            sequence=2,
            state_changed=v1.AuditEvent.StateChanged(state=v1.AUDIT_STATE_SUCCEEDED),
        ),
    ]
    monkeypatch.setattr(options, "Client", functools.partial(Client, retries=FAST))
    return service


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A model and probes."""
    probes = tmp_path / "probes.npz"
    np.savez(probes, images=np.zeros((4, 6), np.float32), labels=np.arange(4))
    return write_model(tmp_path / "m.onnx"), probes


def invoke(*arguments: object) -> Result:
    """Runs a command in this process."""
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def run_audit(address: str, files: tuple[Path, Path], *more: object) -> Result:
    """`onnx-audit run` on the files, its output beside them."""
    model, probes = files
    out = model.parent / "out"
    return invoke(
        *("run", model, "--probes", probes, "--server", address, "--out", out, "--box", "0,1"),
        *more,
    )


def test_run_prints_a_summary_and_leaves_report_and_examples(
    ready: FakeService, address: str, files: tuple[Path, Path]
) -> None:
    """The report is canonical JSON in a file, its artefact lies beside it, people get a summary."""
    ready.reports["audits/1/report"].input_spec.upper[:] = [2]
    result = run_audit(address, files, "--seed", 7, "--max-probes", 3, "--timeout", "2m")
    assert result.exit_code == 0, result.output
    out = files[0].parent / "out"
    text = (out / "report.json").read_text()
    assert json_format.Parse(text, v1.Report()) == ready.reports["audits/1/report"]
    assert text == json.dumps(json.loads(text), sort_keys=True, indent=2, ensure_ascii=False) + "\n"
    assert "max_absolute_difference" not in text or "clean_accuracy" in text
    assert (out / "distortion-l2.safetensors").read_bytes() == ARTEFACT
    assert (out / "distortion-l2-training.safetensors").read_bytes() == TRAINING
    assert (out / "distortion-l2-training-rounded.safetensors").read_bytes() == ROUNDED
    audit = ready.audits["audits/1"]
    assert (audit.seed, audit.timeout.seconds) == (7, 120)
    assert audit.auditors == v1.AuditorConfigs(distortion=v1.DistortionConfig(max_probes=3))
    assert audit.input_spec == v1.InputSpec(lower=[0], upper=[1])
    for expected in ("clean accuracy", "0.75 [0.125, ∞]", "FEW_PROBES", "[sic]", "scorer [v2]"):
        assert expected in result.stdout
    assert "took the array 'images' as the inputs" in result.stderr
    assert "running" in result.stderr


def test_json_output_is_the_report_and_nothing_else(
    ready: FakeService, address: str, files: tuple[Path, Path]
) -> None:
    """With --json standard output parses as the report; lines for people go elsewhere."""
    result = run_audit(address, files, "--json")
    assert json.loads(result.stdout) == as_dict(ready.reports["audits/1/report"])
    assert "Outcome" in result.stderr


def test_failed_audit_is_a_service_error(
    ready: FakeService, address: str, files: tuple[Path, Path]
) -> None:
    """An audit that fails ends the command with 3 and the cause."""
    ready.failure = rich_status(
        grpc.StatusCode.FAILED_PRECONDITION, "answers differ", reason="PARITY_FAILED"
    )
    result = run_audit(address, files)
    assert result.exit_code == 3
    assert "audits/1 failed (PARITY_FAILED): answers differ" in result.stderr


def test_refused_request_is_a_service_error_with_its_fields(
    ready: FakeService, address: str, files: tuple[Path, Path]
) -> None:
    """What the service says about a field reaches the user."""
    ready.faults["CreateAudit"] = [
        rich_status(
            grpc.StatusCode.INVALID_ARGUMENT, "no box", fields={"audit.input_spec.lower": "give it"}
        )
    ]
    result = run_audit(address, files)
    assert result.exit_code == 3
    assert "audit.input_spec.lower: give it" in result.stderr


def test_unreachable_service_is_a_service_error(
    ready: FakeService, files: tuple[Path, Path]
) -> None:
    """A wrong address ends the command with 3."""
    assert ready.calls == []
    assert run_audit("127.0.0.1:1", files).exit_code == 3


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--auditors", "distorsion"], "did you mean distortion"),
        (["--auditors", "lipschitz", "--budget", 5], "--budget is a setting of distortion"),
        (["--lower", "0"], "--box and --lower say the same"),
        (["--mean", "x"], "mean is 'x'; expected a number"),
        (["--timeout", "soon"], "not a length of time"),
        (["--seed", "-1"], "-1 is not in the range"),
        (["--unknown"], "No such option"),
    ],
)
def test_wrong_options_are_usage_errors_before_any_call(
    ready: FakeService,
    address: str,
    files: tuple[Path, Path],
    more: list[object],
    message: str,
) -> None:
    """Mistakes in options end with 2 and an explanation, and the service is not bothered."""
    result = run_audit(address, files, *more)
    assert result.exit_code == 2
    assert message in result.stderr
    assert ready.calls == []


@pytest.mark.parametrize("broken", ["m.onnx", "probes.npz"])
def test_unusable_files_are_usage_errors(
    ready: FakeService, address: str, files: tuple[Path, Path], broken: str
) -> None:
    """A model that is not ONNX, or a damaged probe file, ends with 2 before any call."""
    (files[0].parent / broken).write_bytes(b"\x00 nothing of use")
    result = run_audit(address, files)
    assert result.exit_code == 2
    assert broken in result.stderr
    assert ready.calls == []


def test_config_file_and_options_join(
    ready: FakeService, address: str, files: tuple[Path, Path]
) -> None:
    """Options stand in for values of the file; --auditors chooses among its auditors."""
    config = files[0].parent / "audit.yaml"
    config.write_text("distortion: {norms: [NORM_LINF], budget: 9}\nlipschitz: {}\n")
    run_audit(address, files, "--config", config, "--budget", 50)
    run_audit(address, files, "--config", config, "--auditors", "units, distortion")
    both, chosen = (ready.audits[f"audits/{number}"].auditors for number in (1, 2))
    linf = v1.DistortionConfig(norms=[v1.NORM_LINF], budget=50)
    assert both == v1.AuditorConfigs(distortion=linf, lipschitz=v1.LipschitzConfig())
    linf.budget = 9
    assert chosen == v1.AuditorConfigs(distortion=linf, units=v1.UnitsConfig())


def test_options_of_units(ready: FakeService, address: str, files: tuple[Path, Path]) -> None:
    """They reach the request where units runs, and are refused where it does not."""
    options = ("--unit-values", "fc1,fc2", "--unit-bases", "ica,whitened", "--unit-rotations", 29)
    run_audit(address, files, "--auditors", "units", *options, "--untrained-twin")
    assert ready.audits["audits/1"].auditors.units == v1.UnitsConfig(
        values=["fc1", "fc2"],
        bases=[v1.UNIT_BASIS_ICA, v1.UNIT_BASIS_WHITENED],
        rotations=29,
        untrained_twin=True,
    )
    result = run_audit(address, files, *options)
    assert result.exit_code == 2
    assert "--unit-values is a setting of units, which does not run" in result.stderr


def test_files_of_units_are_uploaded(
    ready: FakeService, address: str, files: tuple[Path, Path]
) -> None:
    """Arrays become blobs with the field's name, whatever theirs was; models are registered."""
    folder = files[0].parent
    concepts, matrix = np.eye(3, dtype=bool), np.ones((2, 4), np.float32)
    np.save(folder / "c.npy", concepts)
    safetensors.numpy.save_file({"layer/fc1": matrix}, folder / "d.safetensors")
    (folder / "a:b.onnx").write_bytes(files[0].read_bytes())
    spec = folder / "audit.yaml"
    spec.write_text("units: {embedding: {input_spec: {mean: [0.5]}}}\n")
    options = ("--concepts", folder / "c.npy", "--directions", folder / "d.safetensors")
    embedding = ("--embedding", f"{folder / 'a:b.onnx'}:fc1:0", "--config", spec)
    run_audit(address, files, *options, *embedding)
    config = ready.audits["audits/1"].auditors.units
    sent = {
        name: safetensors.numpy.load(ready.blobs[name.removeprefix("blobs/")])
        for name in (config.concepts, config.given_directions)
    }
    assert (sent[config.concepts]["concepts"] == concepts).all()
    assert (sent[config.given_directions]["layer/fc1"] == matrix).all()
    assert config.embedding.model.startswith("models/")
    assert config.embedding.value == "fc1:0"
    assert list(config.embedding.input_spec.mean) == [0.5]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--concepts", "nowhere.npz"], "nowhere.npz: no such file; expected .npz"),
        (["--embedding", "nowhere.onnx:fc1"], "there is no such file; expected MODEL.onnx"),
        (["--masks", __file__], "found .py; expected .npz"),
    ],
)
def test_files_that_are_not_there_cost_no_call(
    ready: FakeService, address: str, files: tuple[Path, Path], more: list[str], message: str
) -> None:
    """They are usage errors before anything is sent."""
    result = run_audit(address, files, "--auditors", "units", *more)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert ready.calls == []


def test_options_of_distortion(ready: FakeService, address: str, files: tuple[Path, Path]) -> None:
    """Norms, targets, methods and budgets by name reach the request."""
    config = files[0].parent / "audit.yaml"
    config.write_text(
        "distortion: {budget: quick, target_mode: TARGET_MODE_GIVEN, target_class: 3}\n"
    )
    run_audit(address, files, "--norms", "L2, linf,l0", "--budget", "thorough")
    run_audit(address, files, "--target-class", 0, "--methods", "lbfgs,projected")
    run_audit(address, files, "--config", config)
    run_audit(address, files, "--config", config, "--target-mode", "every-other-class")
    run_audit(address, files, "--config", config, "--budget", "10m")
    asked = [ready.audits[f"audits/{number}"].auditors.distortion for number in range(1, 6)]
    given, every = v1.TARGET_MODE_GIVEN, v1.TARGET_MODE_EVERY_OTHER_CLASS
    methods = [v1.SEARCH_METHOD_LBFGS, v1.SEARCH_METHOD_PROJECTED]
    assert asked == [
        v1.DistortionConfig(norms=[v1.NORM_L2, v1.NORM_LINF, v1.NORM_L0], budget=2000),
        v1.DistortionConfig(target_mode=given, target_class=0, methods=methods),
        v1.DistortionConfig(budget=100, target_mode=given, target_class=3),
        v1.DistortionConfig(budget=100, target_mode=every),
        v1.DistortionConfig(budget_seconds=600, target_mode=given, target_class=3),
    ]


def test_what_stands_beside_distortion_is_asked_for(
    ready: FakeService, address: str, files: tuple[Path, Path]
) -> None:
    """Noise, hidden values and budgets become fields; options replace what the file says."""
    config = files[0].parent / "audit.yaml"
    config.write_text("distortion: {hidden_count: 5, exact_probes: 9, noise_draws: 64}\n")
    run_audit(address, files, "--config", config, "--hidden-values", "a,b", "--exact-probes", 0)
    run_audit(address, files, "--hidden-values", "auto", "--noise", "gaussian,salt-and-pepper")
    run_audit(address, files, "--hidden-values", 7, "--black-box-runs", 50, "--noise-draws", 16)
    asked = [ready.audits[f"audits/{number}"].auditors.distortion for number in range(1, 4)]
    assert asked == [
        v1.DistortionConfig(hidden_values=["a", "b"], exact_probes=0, noise_draws=64),
        v1.DistortionConfig(
            hidden_count=3, noise=[v1.NOISE_KIND_GAUSSIAN, v1.NOISE_KIND_SALT_AND_PEPPER]
        ),
        v1.DistortionConfig(hidden_count=7, black_box_runs=50, noise_draws=16),
    ]
    for option, value in (("--noise", "pink"), ("--black-box-runs", 19), ("--hidden-values", ",")):
        assert run_audit(address, files, option, value).exit_code == 2


def test_a_section_fits_a_narrow_terminal() -> None:
    """At 80 columns nothing is cut: every figure beside the distortions is there."""
    console = Console(width=80, record=True, file=io.StringIO())
    print_distortion(console, distortion_section())
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    for figure in (
        "by answers alone: 2 probes, 1,234 model runs, nearest for 1",
        "1.12 [1, 1.25]",
        "1.06 [1.01, 1.2]",
        "1.03 [1, 1.1]",
        "salt and pepper   0.375 [0.25, 0.5]   L2     6.5 [5, 8]    13.5 [10, 20]",
        "…3/block.0/activation/Relu_output_0"[-23:],
        "2.25 [1, 3]   0.188 [0, 1]",
    ):
        assert figure in text


@pytest.mark.parametrize(
    "options",
    [
        ("--norms", "l3"),
        ("--budget", "slow"),
        ("--budget", "0"),
        ("--methods", ""),
        ("--target-mode", "likely"),
        ("--target-class", "1", "--target-mode", "least-likely"),
    ],
)
def test_refused_options_of_distortion(
    ready: FakeService, address: str, files: tuple[Path, Path], options: tuple[str, ...]
) -> None:
    """What distortion does not offer ends with 2 before any call."""
    result = run_audit(address, files, *options)
    assert result.exit_code == 2
    assert ready.calls == []


def test_image_folder_brings_its_layout(ready: FakeService, address: str, tmp_path: Path) -> None:
    """Images are height, width, channels unless an option says otherwise."""
    images = pytest.importorskip("PIL.Image")
    (tmp_path / "images").mkdir()
    images.new("RGB", (3, 2)).save(tmp_path / "images" / "a.png")
    model = write_model(tmp_path / "m.onnx")
    run_audit(address, (model, tmp_path / "images"))
    run_audit(address, (model, tmp_path / "images"), "--probe-layout", "chw")
    layouts = [audit.input_spec.probe_layout for audit in ready.audits.values()]
    assert layouts == [v1.LAYOUT_HWC, v1.LAYOUT_CHW]


def test_report_show_reads_files_and_audits_alike(
    ready: FakeService, address: str, tmp_path: Path
) -> None:
    """The same report looks the same from its file, its folder and the service."""
    report = ready.reports["audits/1/report"]
    (tmp_path / "report.json").write_text(json.dumps(as_dict(report)))
    sources = [tmp_path / "report.json", tmp_path, "1"]
    shown = [invoke("report", "show", source, "--server", address) for source in sources]
    assert {result.exit_code for result in shown} == {0}
    assert len({result.stdout for result in shown}) == 1
    printed = invoke("report", "show", tmp_path, "--json").stdout
    assert json_format.Parse(printed, v1.Report()) == report
    (tmp_path / "report.json").write_text('{"digset": 1}')
    assert invoke("report", "show", tmp_path).exit_code == 2


def test_lists_shows_and_uploads(
    ready: FakeService, address: str, files: tuple[Path, Path]
) -> None:
    """What was uploaded and started can be listed, shown and cancelled."""
    model, probes = files
    at = ("--server", address)
    uploaded = invoke("upload", "model", model, "--name", "scorer", "--tag", "team=risk", *at)
    assert uploaded.stdout.strip() in ready.models
    assert dict(ready.models[uploaded.stdout.strip()].tags) == {"team": "risk"}
    assert invoke("upload", "model", model, "--tag", "team", *at).exit_code == 2
    assert invoke("upload", "probes", probes, *at).stdout.strip() in ready.sets
    assert json.loads(invoke("models", "list", "--json", *at).stdout)[0]["display_name"] == "scorer"
    assert "scorer" in invoke("models", "list", *at).stdout
    assert "probes/" in invoke("probes", "list", *at).stdout
    run_audit(address, files)
    assert "audits/1" in invoke("audits", "list", *at).stdout
    assert json.loads(invoke("audits", "show", "1", "--json", *at).stdout)["name"] == "audits/1"
    assert "succeeded" in invoke("audits", "show", "1", *at).stdout
    assert "succeeded" in invoke("audits", "watch", "1", *at).stderr
    assert invoke("audits", "cancel", "1", *at).stdout == "audits/1 cancelled\n"
    assert invoke("audits", "show", "none", *at).exit_code == 3


def test_server_may_come_from_the_environment(
    ready: FakeService, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX_AUDIT_SERVER stands in for --server."""
    monkeypatch.setenv("ONNX_AUDIT_SERVER", address)
    assert invoke("models", "list").exit_code == 0
    assert ready.calls == ["ListModels"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: list[str]) -> None:
    """-h works everywhere, and every command that does something shows an example."""
    result = invoke(*command, "-h")
    assert result.exit_code == 0
    is_group = "COMMAND [ARGS]" in result.stdout
    assert ("\n    onnx-audit " in result.stdout) or (is_group and command)


def test_findings_say_what_the_figures_mean() -> None:
    """The demo's sentences quote the section's own figures."""
    text = "\n".join(findings(distortion_section()))
    assert "Clean accuracy: 0.75 [0.3, 0.95] on 4 probes" in text
    assert "a change of L2 length 0.75 or less over 64 pixels" in text


def start_cli(*arguments: object, **environment: str) -> subprocess.Popen[str]:
    """Starts the command line as a process of its own."""
    paths = [str(Path(onnx_audit.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    return subprocess.Popen(
        [sys.executable, "-m", "onnx_audit", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), **environment},
    )


def test_process_prints_version_and_usage() -> None:
    """As a process: --version succeeds, a missing argument is status 2."""
    with start_cli("--version") as version, start_cli("run") as usage:
        assert version.communicate()[0].startswith("onnx-audit")
        assert version.returncode == 0
        assert "Missing argument" in usage.communicate()[1]
        assert usage.returncode == 2


def test_interrupt_cancels_the_audit(tmp_path: Path, files: tuple[Path, Path]) -> None:
    """Ctrl-C during a run cancels the audit, says so, and ends with status 3."""

    class Endless(FakeService):
        """Its audits run until they are cancelled."""

        def WatchAudit(self, request: v1.WatchAuditRequest, context: Any) -> Any:  # noqa: N802
            del context
            state = v1.AuditEvent.StateChanged(state=v1.AUDIT_STATE_RUNNING)
            if not request.after_sequence:
                yield v1.AuditEvent(sequence=1, state_changed=state)
            self.stopped.wait(30)
            state = v1.AuditEvent.StateChanged(state=v1.AUDIT_STATE_CANCELLED)
            yield v1.AuditEvent(sequence=2, state_changed=state)

        def CancelAudit(self, request: v1.CancelAuditRequest, context: Any) -> v1.Audit:  # noqa: N802
            audit = super().CancelAudit(request, context)
            self.stopped.set()
            return audit

        stopped = threading.Event()

    model, probes = files
    with (
        serving(Endless()) as address,
        start_cli(
            *("run", model, "--probes", probes, "--out", tmp_path / "out"),
            ONNX_AUDIT_SERVER=address,
        ) as process,
    ):
        assert process.stderr is not None
        lines = iter(process.stderr.readline, "")
        assert any("running" in line for line in lines)
        process.send_signal(signal.SIGINT)
        rest = list(lines)
        assert process.wait(30) == 3, rest
    assert any("cancelling audits/1" in line for line in rest)
    assert any("was cancelled" in line for line in rest)


def test_a_linear_head_from_options_to_the_printed_report(
    ready: FakeService, address: str, files: tuple[Path, Path]
) -> None:
    """`--head` asks for one, its settings need it, and the report says what it was fitted on."""
    head = v1.LinearHeadConfig(value="code", method=v1.HEAD_METHOD_RIDGE, l2=0.001)
    ready.reports["audits/1/report"].linear_head.CopyFrom(
        v1.LinearHead(config=head, features=12, classes=10, probe_count=300, sha256="3" * 64)
    )
    result = run_audit(address, files, "--head", "code", "--head-method", "softmax")
    assert result.exit_code == 0, result.output
    asked = v1.LinearHeadConfig(value="code", method=v1.HEAD_METHOD_SOFTMAX)
    assert ready.audits["audits/1"].linear_head == asked
    printed = " ".join(result.stdout.split())
    assert "on code, ridge, l2 0.001: 12 features, 10 classes" in printed
    assert run_audit(address, files, "--head", "auto", "--head-l2", "0.5").exit_code == 0
    assert ready.audits["audits/2"].linear_head == v1.LinearHeadConfig(l2=0.5)
    assert run_audit(address, files).exit_code == 0
    assert not ready.audits["audits/3"].HasField("linear_head")
    lone = run_audit(address, files, "--head-method", "ridge")
    assert lone.exit_code == 2
    assert "--head-method is a setting of the linear head; add --head" in lone.stderr
