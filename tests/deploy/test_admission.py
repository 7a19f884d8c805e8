"""The example that lets only audited models start: its own commands, run here."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from cryptography.hazmat.primitives.asymmetric import ed25519
from tests.client.models import write_model
from tests.client.test_attestation import report_of, result_of, write_keys
from tests.service import ROOT

from onnx_audit import v1
from onnx_audit.attestation import envelope, keys, statement
from onnx_audit.policies import load_policy

EXAMPLE = ROOT / "deploy" / "kustomize" / "examples" / "admission.yaml"


def pod() -> dict[str, Any]:
    spec: dict[str, Any] = yaml.safe_load(EXAMPLE.read_text())["spec"]["template"]["spec"]
    return spec


def deliver(folder: Path, verdict: v1.Verdict.ValueType) -> None:
    """A model with external data, its attestation, and the signer's public key."""
    delivered = folder / "delivered"
    model = write_model(delivered / "model.onnx", external=["a.bin", "sub/b.bin"])
    (folder / "keys").mkdir()
    (folder / "served").mkdir()
    private, _ = write_keys(folder / "keys", ed25519.Ed25519PrivateKey.generate())
    report = report_of(model)
    result = result_of(report, verdict=verdict)
    result.policy_digest = statement.digest(load_policy("baseline").policy)
    signed = envelope.sign(statement.make(report, result), keys.load_signer(private))
    (delivered / "model.intoto.json").write_bytes(signed)


def admit(folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs the init container's command, its mounts being folders of a test."""
    (container,) = pod()["initContainers"]
    command = [*container["command"]]
    for mount in container["volumeMounts"]:
        command[-1] = command[-1].replace(
            f"{mount['mountPath']}/", f"{folder}{mount['mountPath']}/"
        )
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.run(
        command, env=os.environ | {"PATH": path}, check=False, capture_output=True, text=True
    )


def test_only_what_has_passed_starts(tmp_path: Path) -> None:
    """A PASS of this very model is let in; another verdict, model or signer is not."""
    good = tmp_path / "good"
    good.mkdir()
    deliver(good, v1.VERDICT_PASS)
    admitted = admit(good)
    assert admitted.returncode == 0, admitted.stderr
    assert (good / "served" / "model.onnx").exists()

    changed = shutil.copytree(good, tmp_path / "changed")
    weights = changed / "delivered" / "sub" / "b.bin"
    weights.write_bytes(weights.read_bytes()[::-1] + b"x")
    failed = tmp_path / "failed"
    failed.mkdir()
    deliver(failed, v1.VERDICT_FAIL)
    stranger = shutil.copytree(good, tmp_path / "stranger")
    shutil.copy(failed / "keys" / "key.pub", stranger / "keys" / "key.pub")
    for folder in (changed, failed, stranger):
        refused = admit(folder)
        assert refused.returncode == 1
        assert "NOT VERIFIED" in refused.stderr


def test_the_server_sees_only_the_verified_copy() -> None:
    """What was verified is what is served: the same volume, read-only, and no other."""
    spec = pod()
    (checked,) = spec["initContainers"]
    (server,) = spec["containers"]
    (mount,) = server["volumeMounts"]
    assert mount["readOnly"]
    assert {"name": mount["name"], "mountPath": mount["mountPath"]} in checked["volumeMounts"]
    assert f"--model {mount['mountPath']}/model.onnx" in checked["command"][-1]
    assert server["args"] == [f"--model={mount['mountPath']}/model.onnx"]
    (volume,) = (volume for volume in spec["volumes"] if volume["name"] == mount["name"])
    assert "emptyDir" in volume
