"""The manifests: valid, alike as overlays and chart, and in step with the program that they run."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import click
import jsonschema
import pytest
import yaml
from tests.deploy.prometheus import scaling
from tests.service import ROOT

from onnx_audit.cli.app import cli
from onnx_audit.connection import Connection
from onnx_audit_server import metrics, service
from onnx_audit_server.main import main
from onnx_audit_server.settings import Settings

DEPLOY = ROOT / "deploy"
TOOLS = ROOT / ".tools" / "bin"
CHART = DEPLOY / "helm" / "onnx-audit"
SCHEMAS = Path(__file__).parent / "schemas"
MODES = ("single", "fleet")
VERSIONS = (
    "1.37",
    pytest.param("1.36", marks=pytest.mark.slow),
    pytest.param("1.35", marks=pytest.mark.slow),
)
STORE = {
    "ONNX_AUDIT_DATABASE_URL": "postgresql+psycopg://db/audit",
    "ONNX_AUDIT_BLOB_URL": "s3://b",
}

Manifest = dict[str, Any]

pytestmark = pytest.mark.skipif(
    not (TOOLS / "kubectl").exists(), reason="`make .tools/installed` brings kubectl and helm"
)


def run(*command: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, check=check, capture_output=True, text=True, timeout=120)


@functools.cache
def overlay_text(folder: Path) -> str:
    return run(TOOLS / "kubectl", "kustomize", folder).stdout


def overlay(mode: str) -> list[Manifest]:
    return list(yaml.safe_load_all(overlay_text(DEPLOY / "kustomize" / "overlays" / mode)))


def chart(*options: str) -> list[Manifest]:
    command = (TOOLS / "helm", "template", "onnx-audit", CHART, "--namespace", "onnx-audit")
    return [m for m in yaml.safe_load_all(run(*command, *options).stdout) if m]


def examples() -> list[Manifest]:
    return [
        manifest
        for path in sorted((DEPLOY / "kustomize" / "examples").glob("*.yaml"))
        for manifest in yaml.safe_load_all(path.read_text())
    ]


def pods(manifests: list[Manifest]) -> list[Manifest]:
    """The pod specs of all workloads."""
    found = []
    for manifest in manifests:
        spec = manifest.get("spec", {})
        if "jobTemplate" in spec:
            spec = spec["jobTemplate"]["spec"]
        if "template" in spec:
            found.append(spec["template"]["spec"])
    return found


def containers(pod: Manifest) -> list[Manifest]:
    return [*pod.get("initContainers", []), *pod["containers"]]


def environment(container: Manifest) -> dict[str, str]:
    return {entry["name"]: entry.get("value", "") for entry in container.get("env", [])}


@pytest.fixture
def with_tls(tmp_path: Path) -> Path:
    """Both overlays with the component tls, as an installation's own overlay adds it."""
    for mode in MODES:
        folder = tmp_path / mode
        folder.mkdir()
        parts = {
            "resources": [DEPLOY / "kustomize" / "overlays" / mode],
            "components": [DEPLOY / "kustomize" / "components" / "tls"],
        }
        text = {
            name: [os.path.relpath(path, folder) for path in paths] for name, paths in parts.items()
        }
        (folder / "kustomization.yaml").write_text(yaml.safe_dump(text))
    return tmp_path


@pytest.mark.parametrize("version", VERSIONS)
def test_manifests_are_valid_for_kubernetes(version: str, with_tls: Path, tmp_path: Path) -> None:
    """No field is unknown or of the wrong type; a misspelt one is noticed."""
    texts = {mode: overlay_text(DEPLOY / "kustomize" / "overlays" / mode) for mode in MODES}
    texts |= {f"tls-{mode}": overlay_text(with_tls / mode) for mode in MODES}
    texts["examples"] = yaml.safe_dump_all(examples())
    for name, text in texts.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    command = (TOOLS / "kubernetes-validate", "--strict", "--quiet", "-k", version)
    done = run(*command, *(tmp_path / f"{name}.yaml" for name in texts), check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    unknown = set(re.findall(r"for kind (\w+)", done.stdout + done.stderr))
    assert unknown <= {"ScaledObject", "ServiceMonitor", "PodMonitor"}  # see the next test
    if version != "1.37":
        return
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(texts["fleet"].replace("readOnlyRootFilesystem", "readOnlyRootFileSystem"))
    assert run(*command, wrong, check=False).returncode != 0


def test_custom_resources_fulfil_their_schemas() -> None:
    """What the operators of Prometheus and KEDA read is what their own schemas allow."""
    checked = set()
    for manifest in overlay("fleet"):
        path = SCHEMAS / f"{manifest['kind'].lower()}.yaml"
        if path.exists():
            schema = yaml.safe_load(path.read_text())
            jsonschema.validate(manifest, schema)
            manifest["spec"]["unknown"] = 1
            with pytest.raises(jsonschema.ValidationError):
                jsonschema.validate(manifest, schema)
            checked.add(manifest["kind"])
    assert checked == {"ScaledObject", "ServiceMonitor", "PodMonitor"}


@pytest.mark.parametrize("mode", MODES)
def test_the_chart_is_the_overlay(mode: str) -> None:
    """With default values helm gives what kubectl gives, but for the namespace itself."""

    def key(manifest: Manifest) -> tuple[str, str]:
        return manifest["kind"], manifest["metadata"]["name"]

    expected = [manifest for manifest in overlay(mode) if manifest["kind"] != "Namespace"]
    found = chart("--set", f"mode={mode}")
    assert sorted(map(key, found)) == sorted(map(key, expected))
    for ours, theirs in zip(sorted(found, key=key), sorted(expected, key=key), strict=True):
        assert ours == theirs


def test_the_overlay_of_the_docs_is_what_it_says(tmp_path: Path) -> None:
    """The example in docs/operations.md: another registry and Prometheus, no monitors, TLS."""
    text = (ROOT / "docs" / "operations.md").read_text()
    (example,) = re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)
    here = os.path.relpath(DEPLOY, tmp_path)
    (tmp_path / "kustomization.yaml").write_text(example.replace("../deploy", here))
    manifests = list(yaml.safe_load_all(overlay_text(tmp_path)))
    names = [manifest["kind"] for manifest in manifests]
    assert sorted(names) == sorted(
        manifest["kind"]
        for manifest in overlay("fleet")
        if manifest["kind"] not in ("ServiceMonitor", "PodMonitor")
    )
    images = {container["image"] for pod in pods(manifests) for container in containers(pod)}
    mine = "registry.mine.org/onnx-audit:0.1.0"
    assert images == {mine, f"{mine}-cuda"}
    (server,) = (manifest for manifest in manifests if manifest["kind"] == "Deployment")
    assert "ONNX_AUDIT_TLS_CERT" in environment(pods([server])[0]["containers"][0])
    (scaled,) = (manifest for manifest in manifests if manifest["kind"] == "ScaledObject")
    (trigger,) = scaled["spec"]["triggers"]
    assert trigger["metadata"]["serverAddress"] == "http://prometheus.obs.svc:9090"


def test_the_chart_is_fresh_and_lints() -> None:
    """Templates are what the generator writes now; helm finds no fault."""
    spec = importlib.util.spec_from_file_location("generate", DEPLOY / "helm" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    for mode in MODES:
        assert (CHART / "templates" / f"{mode}.yaml").read_text() == generate.template(mode), (
            "run `make manifests`"
        )
    assert "[ERROR]" not in run(TOOLS / "helm", "lint", "--strict", CHART).stdout


def test_values_of_the_chart_arrive(tmp_path: Path) -> None:
    """Each value changes what it says, and nothing is left of what is switched off."""
    values = {
        "mode": "fleet",
        "image": {"repository": "r.example/a", "tag": "1", "cudaTag": "2"},
        "imagePullSecrets": [{"name": "pull"}],
        "settings": {"ONNX_AUDIT_LOG_LEVEL": "debug", "ONNX_AUDIT_SLOTS": 2},
        "tlsSecret": "certificate",
        "storeSecret": "store",
        "monitoring": False,
        "keda": {"enabled": False},
        "server": {"minReplicas": 3, "maxReplicas": 4},
        "worker": {"replicas": 5},
        "gc": {"schedule": "0 0 * * *"},
    }
    path = tmp_path / "values.yaml"
    path.write_text(yaml.safe_dump(values))
    manifests = chart("--values", str(path))
    kinds = {manifest["kind"]: manifest for manifest in manifests}
    assert not kinds.keys() & {"ScaledObject", "ServiceMonitor", "PodMonitor"}
    assert kinds["HorizontalPodAutoscaler"]["spec"]["minReplicas"] == 3
    assert kinds["StatefulSet"]["spec"]["replicas"] == 5
    assert kinds["CronJob"]["spec"]["schedule"] == "0 0 * * *"
    for pod in pods(manifests):
        assert pod["imagePullSecrets"] == [{"name": "pull"}]
        for container in containers(pod):
            assert container["image"] in ("r.example/a:1", "r.example/a:2")
            variables = environment(container)
            assert variables["ONNX_AUDIT_LOG_LEVEL"] == "debug"
            assert variables["ONNX_AUDIT_SLOTS"] == "2"
    text = json.dumps(manifests)
    assert '"onnx-audit-store"' not in text
    (server,) = pods([kinds["Deployment"]])
    assert {"name": "tls", "secret": {"secretName": "certificate", "defaultMode": 0o440}} in (
        server["volumes"]
    )
    assert environment(server["containers"][0])["ONNX_AUDIT_TLS_CERT"] == "/tls/tls.crt"


@pytest.mark.parametrize("value", ["mode=flet", "keda.enable=false", "worker.replicas=many"])
def test_a_value_that_means_nothing_is_refused(value: str) -> None:
    """A misspelt name or value is an error, not an installation without what was asked for."""
    command = (TOOLS / "helm", "template", "onnx-audit", CHART, "--set", value)
    done = run(*command, check=False)
    assert done.returncode != 0
    assert value.partition("=")[0].rpartition(".")[2] in done.stderr


@pytest.mark.parametrize("mode", MODES)
def test_pods_run_what_the_program_knows(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables are settings with values that they allow; arguments are the command's."""
    for pod in pods(overlay(mode)):
        for container in pod["containers"]:
            variables = environment(container)
            ours = {name.removeprefix("ONNX_AUDIT_") for name in variables}
            assert {name.lower() for name in ours} <= Settings.model_fields.keys()
            with monkeypatch.context() as patch:
                for name, value in variables.items():
                    patch.setenv(name, value or STORE.get(name, "onnx-audit-worker-0"))
                command, *options = container["args"]
                if command in ("serve", "worker"):
                    main.commands[command].make_context(command, list(options))
                settings = Settings()
            if command == "gc":
                continue
            # What SIGTERM sets going has ended before SIGKILL.
            pause = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {})
            drain = 0.0 if "--no-worker" in options else settings.drain_timeout
            needed = pause.get("seconds", 0) + drain + service.GRACE
            assert needed + 15 <= pod["terminationGracePeriodSeconds"]


def test_the_example_of_a_job_is_a_call_that_the_client_makes() -> None:
    """Its arguments are options of the command, and its token may go to where it says."""
    (job,) = (manifest for manifest in examples() if manifest["kind"] == "Job")
    (container,) = pods([job])[0]["containers"]
    command, *options = container["args"]
    # Model and probes are files of the cluster's.
    options = [re.sub(r"/models/.*\.(onnx|npz)", __file__, option) for option in options]
    chosen = cli.get_command(click.Context(cli), command)
    assert chosen is not None
    given = chosen.make_context(command, options).params
    assert environment(container).keys() == {"ONNX_AUDIT_TOKEN"}
    service_name = f"onnx-audit.{job['metadata']['namespace']}.svc"
    assert Connection(given["server"], token=lambda: "a token").address == f"{service_name}:50051"


def test_probes_ask_ports_that_the_image_serves() -> None:
    """The ports of the manifests are those that the image's environment names."""
    served = dict(
        re.findall(
            r"ONNX_AUDIT_(LISTEN|HTTP|HEALTH)=0\.0\.0\.0:(\d+)",
            (DEPLOY / "Dockerfile").read_text(),
        )
    )
    ports = {"LISTEN": "grpc", "HTTP": "http", "HEALTH": "health"}
    for pod in (pod for mode in MODES for pod in pods(overlay(mode))):
        for container in (c for c in pod["containers"] if "ports" in c):
            named = {port["name"]: port["containerPort"] for port in container["ports"]}
            for setting, port in served.items():
                if ports[setting] in named:
                    assert named[ports[setting]] == int(port)
            for probe in ("startupProbe", "readinessProbe"):
                assert container[probe]["grpc"]["port"] == int(served["HEALTH"])
            assert container["livenessProbe"]["httpGet"]["port"] == "http"


def test_scaling_asks_for_metrics_that_exist() -> None:
    """KEDA's query names metrics that are exported; a test of the service runs it."""
    (scaled,) = [m for m in overlay("fleet") if m["kind"] == "ScaledObject"]
    (trigger,) = scaled["spec"]["triggers"]
    assert [trigger["metadata"]["query"]] == scaling()
    named = set(re.findall(r"onnx_audit_\w+", trigger["metadata"]["query"]))
    assert "onnx_audit_tasks_waiting" in named
    assert named <= metrics.CATALOGUE.keys()


def test_nothing_is_reached_that_no_policy_names() -> None:
    """All pods are under the policy that denies; no other opens all ports, or a port to all."""
    for mode in MODES:
        policies = [m for m in overlay(mode) if m["kind"] == "NetworkPolicy"]
        (deny,) = [p for p in policies if p["metadata"]["name"] == "onnx-audit-deny"]
        assert deny["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
        for policy in policies:
            rules = [*policy["spec"].get("ingress", []), *policy["spec"].get("egress", [])]
            assert all(rule["ports"] for rule in rules)
            assert all(rule["from"] for rule in policy["spec"].get("ingress", []))


def test_the_dockerfile_lints() -> None:
    """The linter has nothing to say but what the file itself gives reasons for."""
    done = run(TOOLS / "hadolint", DEPLOY / "Dockerfile", check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_checkov_finds_nothing_but_what_has_a_reason(tmp_path: Path) -> None:
    """A scanner of others' rules passes the manifests and the Dockerfile."""
    checkov = ROOT / ".tools-checkov" / "bin" / "checkov"
    if not checkov.exists():
        pytest.skip("`make .tools-checkov/installed` brings checkov")
    for mode in MODES:
        (tmp_path / f"{mode}.yaml").write_text(
            overlay_text(DEPLOY / "kustomize" / "overlays" / mode)
        )
    (tmp_path / "examples.yaml").write_text(yaml.safe_dump_all(examples()))
    (tmp_path / "Dockerfile").write_text((DEPLOY / "Dockerfile").read_text())
    exceptions = yaml.safe_load((DEPLOY / "checkov.yaml").read_text())
    assert all(exceptions.values()), "an exception needs a reason"
    command = (checkov, "--directory", tmp_path, "--framework", "kubernetes", "dockerfile")
    done = run(*command, "--skip-download", "--output", "json", "--quiet", check=False)
    results = json.loads(done.stdout)
    failed = {
        check["check_id"] for result in results for check in result["results"]["failed_checks"]
    }
    assert {result["check_type"] for result in results} == {"kubernetes", "dockerfile"}
    assert failed == set(exceptions), "each exception is still needed, and no more"
