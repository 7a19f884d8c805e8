"""Policies and comparisons over real gRPC, on the reports of real audits."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from google.protobuf import json_format
from onnx import helper, numpy_helper
from tests import models
from tests.service import ROOT, ServiceProcess

from onnx_audit import Client, ConfigError, InvalidRequest, NotFound, v1
from onnx_audit.errors import FailedPrecondition
from onnx_audit.policies import READY_MADE, parse_policy
from onnx_audit_server.reports.compare.figures import Rows, figures

CONFIG = v1.AuditorConfigs(distortion=v1.DistortionConfig(budget=40, exact_probes=0))
OPTIONS = "--box 0,1 --budget 40 --exact-probes 0"
COUNT, SIZE = 40, 16

GATES = """\
display_name: mine
gates:
  - id: {gate}
    expression: {expression}
waivers: []
"""
WAIVED = """\
  - gate_id: {gate}
    model: "reg*"
    reason: known
    owner: ann
    expire_time: {day}
"""


def linear(path: Path, stretch: float) -> Path:
    """Two classes told apart by a plane; by how much the steps across it are stretched.

    The last half of the inputs is 0.5 in every probe. Weights on it make the plane's normal longer
    by the factor, and the offset takes them back: the answers are the same, the distances shorter.
    """
    weights = np.zeros((SIZE, 2), np.float32)
    weights[: SIZE // 2, 1] = np.random.default_rng(4).choice([-1.0, 1.0], SIZE // 2)
    extra = np.linalg.norm(weights[:, 1]) * math.sqrt(stretch**2 - 1) / math.sqrt(SIZE // 2)
    signs = np.resize([1, -1], SIZE // 2)
    weights[SIZE // 2 :, 1] = extra * signs
    offset = np.array([0, -0.5 * weights[:, 1].sum()], np.float32)
    node = helper.make_node("Gemm", ["x", "w", "b"], ["logits"])
    parts = [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(offset, "b")]
    return models.save(models.model([node], [None, SIZE], [None, 2], parts), path)


@pytest.fixture(scope="module")
def audits(client: Client, tmp_path_factory: pytest.TempPathFactory) -> dict[str, v1.Audit]:
    """The audits of a model and of its worse twin, over the same probes."""
    folder = tmp_path_factory.mktemp("models")
    probes = models.probes(COUNT, SIZE)
    probes[:, SIZE // 2 :] = 0.5
    released = linear(folder / "released.onnx", 1.0)
    labels = onnxruntime.InferenceSession(released).run(None, {"x": probes})[0].argmax(1)
    registered = client.upload_probes(probes, labels=labels)
    spec = v1.InputSpec(lower=[0], upper=[1])
    policy = parse_policy(GATES.format(gate="parity", expression="report.parity.passed"), "p")
    made = {}
    for name, stretch in (("released", 1.0), ("regressed", 1.25)):
        model = client.upload_model(linear(folder / f"{name}.onnx", stretch), display_name=name)
        audit = client.audit(model, registered, auditors=CONFIG, input_spec=spec, policy=policy)
        made[name] = client.wait(audit)
    return made


def policy(gate: str, expression: str, *waiver: str) -> str:
    text = GATES.format(gate=gate, expression=expression)
    return text.replace("[]", "\n" + WAIVED.format(gate=gate, day=waiver[0])) if waiver else text


def test_an_audit_ends_with_the_verdict_of_its_policy(
    client: Client, audits: dict[str, v1.Audit]
) -> None:
    """Verdict and result are kept with the audit, and watchers get the verdict."""
    audit = audits["released"]
    assert audit.verdict == audit.policy_result.verdict == v1.VERDICT_PASS
    assert audit.policy_result.report_digest == audit.report_digest
    assert list(client.watch(audit))[-1].state_changed.verdict == v1.VERDICT_PASS
    assert "policy" not in json_format.MessageToJson(client.report(audit))


def test_a_planted_regression_is_caught(client: Client, audits: dict[str, v1.Audit]) -> None:
    """A plane that is 1.25 times as steep: distances are 1.25 times less, answers the same."""
    found = {
        row.path: row for row in client.compare(audits["released"], audits["regressed"]).comparisons
    }
    median = found["distortion.norms[L2].quantiles[0.5]"]
    assert median.movement == v1.MOVEMENT_WORSE
    assert median.candidate.value == pytest.approx(median.baseline.value / 1.25, rel=0.01)
    assert found["distortion.clean_accuracy"].movement == v1.MOVEMENT_WITHIN_NOISE
    for name, verdict in (("regressed", v1.VERDICT_FAIL), ("released", v1.VERDICT_PASS)):
        result = client.evaluate_policy(audits[name], "regression-only", audits["released"])
        failed = {row.gate.id for row in result.gates if row.verdict == v1.VERDICT_FAIL}
        assert result.verdict == verdict
        assert failed == ({"distortion", "robust-accuracy"} if name == "regressed" else set())
    alone = client.evaluate_policy(audits["regressed"], "regression-only")
    assert alone.verdict == v1.VERDICT_INCONCLUSIVE


def test_figures_are_made_of_their_rows(client: Client, audits: dict[str, v1.Audit]) -> None:
    """What the bootstrap resamples gives, undrawn, the very figures of the report."""
    made = figures(client.report(audits["regressed"]))
    with_rows = [one for one in made.values() if one.rows is not None]
    assert len(with_rows) >= 5
    for one in with_rows:
        assert isinstance(one.rows, Rows)
        values = one.rows.values[~np.isnan(one.rows.values)]
        if one.rows.probability is None:
            assert values.mean() == pytest.approx(one.estimate.value, rel=1e-12)
        else:
            rank = max(1, math.ceil(one.rows.probability * len(values) - 1e-9))
            assert np.sort(values)[rank - 1] == one.estimate.value


@pytest.mark.parametrize(
    ("gate", "verdict"),
    [
        (policy("g", "at_least(report.distortion.clean_accuracy, 0.9)"), v1.VERDICT_PASS),
        (policy("g", "at_most(report.distortion.clean_accuracy, 0.9)"), v1.VERDICT_FAIL),
        (policy("g", "at_least(report.distortion.clean_accuracy, 0.95)"), v1.VERDICT_INCONCLUSIVE),
        (policy("g", "report.lipschitz.network.size() > 0"), v1.VERDICT_INCONCLUSIVE),
        (policy("g", "report.parity.tolerance > 1.0", "2999-01-01"), v1.VERDICT_PASS),
        (policy("g", "report.parity.tolerance > 1.0", "2000-01-01"), v1.VERDICT_FAIL),
    ],
)
def test_reports_are_held_against_other_policies(
    client: Client, audits: dict[str, v1.Audit], gate: str, verdict: int
) -> None:
    """The same report under another policy, by name and as the caller holds it: one verdict."""
    loaded = parse_policy(gate, "p")
    audit = audits["regressed"]
    for report in (audit, client.report(audit)):
        assert client.evaluate_policy(report, loaded).verdict == verdict


def test_what_cannot_be_evaluated_is_refused(client: Client, audits: dict[str, v1.Audit]) -> None:
    """Mistakes name their line; reports must exist and be whole; a baseline needs a policy."""
    with pytest.raises(ConfigError, match=r"p:4:30: gates\[0\]\.expression: undefined field 'x'"):
        client.check_policy(parse_policy(policy("g", "report.parity.x"), "p"))
    for name in READY_MADE:
        client.check_policy(name)
    with pytest.raises(NotFound):
        client.evaluate_policy("audits/none", "baseline")
    changed = client.report(audits["released"])
    changed.parity.tolerance = 1
    for call in (
        lambda: client.evaluate_policy(changed, "baseline"),
        lambda: client.compare(audits["released"], changed),
        lambda: client.render(changed, v1.REPORT_FORMAT_JSON),
    ):
        with pytest.raises(InvalidRequest, match="digest"):
            call()
    audit = audits["released"]
    with pytest.raises(InvalidRequest, match=r"audit\.baseline"):
        client.audit(audit.model, audit.probe_set, baseline=audit)
    with pytest.raises(FailedPrecondition, match="not uploaded"):
        client.evaluate_policy(audit, "baseline", "blobs/" + "0" * 64)


def test_a_pipeline_runs_the_gate_against_a_report_of_its_own(
    client: Client, service: ServiceProcess, audits: dict[str, v1.Audit], tmp_path: Path
) -> None:
    """The script for build services blocks the regressed model, with a local report as baseline."""
    linear(tmp_path / "new.onnx", 1.25)
    older = client.report(audits["released"])
    (tmp_path / "older.json").write_text(json_format.MessageToJson(older))
    probes = models.probes(COUNT, SIZE)
    probes[:, SIZE // 2 :] = 0.5
    session = onnxruntime.InferenceSession(onnx.load(tmp_path / "new.onnx").SerializeToString())
    np.savez(
        tmp_path / "probes.npz",
        inputs=probes,
        labels=session.run(None, {"x": probes})[0].argmax(1),
    )
    commands = tmp_path / "onnx-audit"
    commands.write_text(f'#!/bin/sh\nexec {sys.executable} -m onnx_audit "$@"\n')
    commands.chmod(0o755)
    paths = os.pathsep.join(str(ROOT / name) for name in ("client", "auditors", "server"))
    done = subprocess.run(
        [ROOT / "deploy" / "ci" / "gate.sh"],
        cwd=tmp_path,
        env=os.environ
        | {
            "PATH": os.pathsep.join([str(tmp_path), os.environ["PATH"]]),
            "PYTHONPATH": paths,
            "ONNX_AUDIT_MODEL": "new.onnx",
            "ONNX_AUDIT_PROBES": "probes.npz",
            "ONNX_AUDIT_POLICY": "regression-only",
            "ONNX_AUDIT_BASELINE": "older.json",
            "ONNX_AUDIT_FORMATS": "json",
            "ONNX_AUDIT_OPTIONS": OPTIONS,
            "ONNX_AUDIT_SERVER": service.target,
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Verdict: FAIL" in done.stdout
    report = json.loads((tmp_path / "onnx-audit-report" / "report.json").read_text())
    assert report["digest"] == client.report(audits["regressed"]).digest
