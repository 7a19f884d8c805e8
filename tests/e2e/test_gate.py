"""The gate as pipelines run it: the command, a service of its own, models that are known."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import helper, numpy_helper
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier
from tests import models
from tests.service import ROOT

TIMEOUT = 280
COUNT, SIZE = 40, 16
QUICK = ("--box", "0,1", "--budget", "60", "--exact-probes", "0")


def linear(path: Path, stretch: float) -> Path:
    """Two classes told apart by a plane; by how much the steps across it are stretched.

    The last half of the inputs is 0.5 in every probe. Weights on it make the plane's normal longer
    by the factor, and the offset takes them back: the answers are the same, the distances shorter.
    """
    weights = np.zeros((SIZE, 2), np.float32)
    weights[: SIZE // 2, 1] = np.random.default_rng(4).choice([-1.0, 1.0], SIZE // 2)
    extra = np.linalg.norm(weights[:, 1]) * math.sqrt(stretch**2 - 1) / math.sqrt(SIZE // 2)
    weights[SIZE // 2 :, 1] = extra * np.resize([1, -1], SIZE // 2)
    offset = np.array([0, -0.5 * weights[:, 1].sum()], np.float32)
    node = helper.make_node("Gemm", ["x", "w", "b"], ["logits"])
    parts = [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(offset, "b")]
    return models.save(models.model([node], [None, SIZE], [None, 2], parts), path)


def save_probes(model: Path) -> None:
    """Writes probes.npz beside a model, with the model's own answers as labels."""
    inputs = models.probes(COUNT, SIZE)
    inputs[:, SIZE // 2 :] = 0.5
    scores = onnxruntime.InferenceSession(model).run(None, {"x": inputs})[0]
    np.savez(model.parent / "probes.npz", inputs=inputs, labels=scores.argmax(1))


def run(folder: Path, command: list[object], **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs a command in a folder, with `onnx-audit` on the path and data of its own."""
    script = folder / "onnx-audit"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -m onnx_audit "$@"\n')
    script.chmod(0o755)
    paths = [str(ROOT / name) for name in ("client", "auditors", "server")]
    given = {
        "PATH": os.pathsep.join([str(folder), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join(paths),
        "XDG_DATA_HOME": str(folder / "data"),
    }
    return subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env=os.environ | given | variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT,
        stdin=subprocess.DEVNULL,
    )


def gate(folder: Path, model: str, policy: str, *more: str) -> subprocess.CompletedProcess[str]:
    files = ("onnx-audit", "gate", model, "--probes", "probes.npz", "--policy", policy)
    return run(folder, [*files, *QUICK, *more])


POLICY = """\
display_name: mine
gates:
  - id: g
    expression: {}
"""
WAIVER = """\
waivers: [{{gate_id: g, model: "rel*", reason: known, owner: ann, expire_time: {}}}]
"""


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_exit_statuses_of_models_that_pass_fail_and_cannot_be_judged(tmp_path: Path) -> None:
    """Pass, fail, undecided, failing but waived, and waived for too long."""
    save_probes(linear(tmp_path / "released.onnx", 1.0))
    accuracy = "report.distortion.clean_accuracy"
    for expression, waived_until, status in (
        (f"at_least({accuracy}, 0.9)", "", 0),
        (f"at_most({accuracy}, 0.9)", "", 1),
        (f"at_least({accuracy}, 0.95)", "", 2),
        (f"at_most({accuracy}, 0.9)", "2999-01-01", 0),
        (f"at_most({accuracy}, 0.9)", "2000-01-01", 1),
    ):
        text = POLICY.format(expression) + (WAIVER.format(waived_until) if waived_until else "")
        (tmp_path / "policy.yaml").write_text(text)
        done = gate(tmp_path, "released.onnx", "policy.yaml", "--format", "json")
        assert done.returncode == status, done.stdout + done.stderr
        assert (tmp_path / "onnx-audit-report" / "report.json").is_file()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_pipeline_blocks_a_planted_regression(tmp_path: Path) -> None:
    """The script for build services lets a model pass, and blocks its steeper twin beside it.

    The twin is 1.25 times as steep: every distance is that much less, every answer the same.
    """
    linear(tmp_path / "regressed.onnx", 1.25)
    save_probes(linear(tmp_path / "released.onnx", 1.0))
    given = {
        "ONNX_AUDIT_PROBES": "probes.npz",
        "ONNX_AUDIT_FORMATS": "json",
        "ONNX_AUDIT_OPTIONS": " ".join(QUICK),
    }
    for model, policy, baseline, status in (
        ("released.onnx", "baseline", "", 0),
        ("regressed.onnx", "regression-only", "older/report.json", 1),
        ("released.onnx", "regression-only", "regressed.onnx", 0),
    ):
        variables = given | {
            "ONNX_AUDIT_MODEL": model,
            "ONNX_AUDIT_POLICY": policy,
            "ONNX_AUDIT_BASELINE": baseline,
            "ONNX_AUDIT_OUT": "newer" if baseline else "older",
        }
        done = run(tmp_path, [ROOT / "deploy" / "ci" / "gate.sh"], **variables)
        assert done.returncode == status, done.stdout + done.stderr
    done = run(tmp_path, ["onnx-audit", "compare", "older", "newer", "--json"])
    rows = {row["path"]: row for row in json.loads(done.stdout)["comparisons"]}
    assert rows["distortion.norms[L2].mean"]["movement"] == "MOVEMENT_WITHIN_NOISE"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_seeds_of_one_training_are_told_from_noise(tmp_path: Path) -> None:
    """The comparison of two trainings gives each difference an interval, and says what it means."""
    digits = load_digits()
    inputs, labels = (digits.data / 16).astype(np.float32), digits.target
    for seed in (0, 1):
        trained = MLPClassifier((32,), max_iter=60, random_state=seed, early_stopping=True)
        trained.fit(inputs[:1200], labels[:1200])
        nodes, weights, value = [], [], "x"
        for layer, (matrix, bias) in enumerate(
            zip(trained.coefs_, trained.intercepts_, strict=True)
        ):
            weights.append(numpy_helper.from_array(matrix.astype(np.float32), f"w{layer}"))
            weights.append(numpy_helper.from_array(bias.astype(np.float32), f"b{layer}"))
            out = "logits" if layer else "h"
            nodes.append(helper.make_node("Gemm", [value, f"w{layer}", f"b{layer}"], [out]))
            if not layer:
                nodes.append(helper.make_node("Relu", ["h"], ["a"]))
                value = "a"
        made = models.model(nodes, [None, 64], [None, 10], weights)
        models.save(made, tmp_path / f"seed{seed}.onnx")
    np.savez(tmp_path / "probes.npz", inputs=inputs[1200:1320], labels=labels[1200:1320])
    done = gate(tmp_path, "seed1.onnx", "regression-only", "--baseline", "seed0.onnx", "--json")
    result = json.loads(done.stdout)
    assert done.returncode in {0, 1}, done.stdout + done.stderr
    figures = [
        figure
        for row in result["gates"]
        if row["gate"]["id"] in {"accuracy", "distortion", "robust-accuracy"}
        for figure in row["figures"]
    ]
    assert len(figures) == 3
    assert all(
        "noise" in row["explanation"]
        or "worse" in row["explanation"]
        or "better" in row["explanation"]
        for row in result["gates"][2:5]
    )
