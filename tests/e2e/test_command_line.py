"""The command line as its users run it: real processes, real models, an embedded service."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
from PIL import Image
from safetensors.numpy import load_file
from tests import models
from tests.service import ROOT
from tests.support import shared_data

TIMEOUT = 240
CONFIRMED = 1


def onnx_audit(
    *arguments: str | Path, cwd: Path, expect: int = 0
) -> subprocess.CompletedProcess[str]:
    """Runs the command with a data folder below `cwd`."""
    paths = [str(ROOT / name) for name in ("client", "auditors", "server")]
    environment = {name: value for name, value in os.environ.items() if "ONNX_AUDIT" not in name}
    environment |= {"PYTHONPATH": os.pathsep.join(paths), "XDG_DATA_HOME": str(cwd / "data")}
    result = subprocess.run(
        [sys.executable, "-m", "onnx_audit", *map(str, arguments)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert result.returncode == expect, result.stdout + result.stderr
    return result


def read_report(folder: Path) -> dict[str, Any]:
    """The report that a run has left."""
    content: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return content


def answers(model: Path, inputs: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """ONNX Runtime's answers to model inputs, one at a time."""
    session = onnxruntime.InferenceSession(model)
    name = session.get_inputs()[0].name
    outputs = [session.run(None, {name: one[None]})[0].ravel() for one in inputs]
    return np.array([output.argmax() for output in outputs])


@pytest.mark.parametrize(
    ("name", "images", "mean", "std"),
    [
        ("mnist-net_256x2", "mnist_test_1000", (0.0,), (1.0,)),
        ("mnist_convnet_maxpool", "mnist_test_1000", (0.0,), (1.0,)),
        ("cifar_base_kw", "cifar10_test_exact", (0.485, 0.456, 0.406), (0.225,)),
    ],
)
def test_real_models_are_audited(
    tmp_path: Path, name: str, images: str, mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    """What a report calls confirmed fools an independent ONNX Runtime, at the stated distance."""
    data = np.load(shared_data() / f"{images}.npz")
    chosen = np.linspace(0, len(data["images"]) - 1, 24).astype(int)
    stored, labels = data["images"][chosen], data["labels"][chosen]
    np.savez(tmp_path / "probes.npz", inputs=stored, labels=labels)
    model = shared_data() / "models" / f"{name}.onnx"
    normalise = ("--mean", ",".join(map(str, mean)), "--std", ",".join(map(str, std)))
    probes = ("--probes", "probes.npz", "--budget", "60")
    result = onnx_audit("run", model, *probes, *normalise, cwd=tmp_path)
    assert "worked out" in result.stdout + result.stderr
    section = read_report(tmp_path / "onnx-audit-report")["distortion"]
    table = load_file(tmp_path / "onnx-audit-report" / "distortion-l2.safetensors")

    def to_model(p: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        shape = tuple(onnxruntime.InferenceSession(model).get_inputs()[0].shape[1:])
        if p.ndim == 4:
            p = p.transpose(0, 3, 1, 2)
            constants = [np.array(v, np.float32).reshape(1, -1, 1, 1) for v in (mean, std)]
            p = (p - constants[0]) / constants[1]
        return np.ascontiguousarray(p.reshape(len(p), *shape), np.float32)

    inputs = (stored / np.float32(255)).astype(np.float32)
    clean = answers(model, to_model(inputs))
    assert section["clean_accuracy"]["value"] == pytest.approx((clean == labels).mean())
    adversarial = answers(model, to_model(table["example"]))
    confirmed = table["outcome"] == CONFIRMED
    assert confirmed.sum() == int(section["norms"][0]["confirmed"]) == (clean == labels).sum()
    assert (adversarial[confirmed] != labels[confirmed]).all()
    assert table["example"].min() >= 0
    assert table["example"].max() <= 1
    size = np.sqrt(((table["example"].astype(float) - inputs) ** 2).reshape(24, -1).sum(1))
    np.testing.assert_allclose(size[confirmed], table["distance"][confirmed], rtol=1e-9)


def test_a_folder_of_images_gives_the_same_figures(tmp_path: Path) -> None:
    """PNG files in one subfolder per label are the same probes as an array of their pixels."""
    data = np.load(shared_data() / "mnist_test_1000.npz")
    order = np.argsort(data["labels"][:40], kind="stable")
    images, labels = data["images"][:40][order], data["labels"][:40][order]
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        folder = tmp_path / "images" / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number:03}.png")
    classes = {label: index for index, label in enumerate(sorted(set(labels.tolist())))}
    np.savez(tmp_path / "a.npz", inputs=images, labels=[classes[label] for label in labels])
    model = shared_data() / "models" / "mnist-net_256x2.onnx"
    for probes in ("images", "a.npz"):
        options = ("--probes", probes, "--budget", "20", "--out", f"out-{probes}")
        onnx_audit("run", model, *options, cwd=tmp_path)
    one, other = (read_report(tmp_path / f"out-{probes}") for probes in ("images", "a.npz"))
    for report in (one, other):
        del report["distortion"]["norms"][0]["artefact"]
    assert one["distortion"]["norms"] == other["distortion"]["norms"]
    assert one["distortion"]["clean_accuracy"] == other["distortion"]["clean_accuracy"]


def test_transfer_between_files(tmp_path: Path) -> None:
    """A copy and an unlike peer: counts of the report follow from the exported examples."""
    files = [models.mlp(), models.mlp(), models.mlp((16, 12, 4), seed=5)]
    for name, model in zip(("a", "b", "c"), files, strict=True):
        models.save(model, tmp_path / f"{name}.onnx")
    np.savez(tmp_path / "probes.npz", inputs=models.probes(20, 16), labels=np.arange(20) % 4)
    result = onnx_audit(
        *("run", "a.onnx", "--probes", "probes.npz", "--box", "0,1", "--auditors", "transfer"),
        *("--peer", "b.onnx,release=2", "--peer", "c.onnx,release=1,architecture=small"),
        *("--tags", "release=1,architecture=large", "--budget", "30"),
        cwd=tmp_path,
    )
    assert "minimal: source (row) to target (column)" in result.stdout
    section = read_report(tmp_path / "onnx-audit-report")["transfer"]
    assert section["models"] == ["a", "b", "c"]
    assert {(kind["tag"], kind.get("alone", False)) for kind in section["kinds"]} == {
        ("release", True),
        ("architecture", True),
        ("architecture", False),
        ("release", False),
    }
    table = load_file(tmp_path / "onnx-audit-report" / "transfer-minimal.safetensors")
    probes = models.probes(20, 16)
    for target, name in enumerate("abc"):
        path = tmp_path / f"{name}.onnx"
        right = answers(path, probes) == np.arange(20) % 4
        wrong = answers(path, table["example"]) != table["label"]
        for source in range(3):
            rows = (table["source"] == source) & right[table["probe"]]
            (cell,) = (
                cell
                for cell in section["cells"]
                if cell["attack"] == "TRANSFER_ATTACK_MINIMAL"
                and (cell.get("source", 0), cell.get("target", 0)) == (source, target)
            )
            assert int(cell["error_rate"].get("count", 0)) == rows.sum()
            assert cell["error_rate"].get("value", 0) == pytest.approx(wrong[rows].mean())
    assert (table["answers"][:, 0] == table["answers"][:, 1]).all()
    assert (tmp_path / "onnx-audit-report" / "transfer-ensemble.safetensors").exists()
    onnx_audit(
        *("run", "a.onnx", "--probes", "probes.npz", "--box", "0,1", "--budget", "30"),
        *("--auditors", "distortion,transfer", "--attacks", "minimal", "--peer", "c.onnx"),
        *("--out", "both"),
        cwd=tmp_path,
    )
    minimal = load_file(tmp_path / "both" / "transfer-minimal.safetensors")
    smallest = load_file(tmp_path / "both" / "distortion-l2.safetensors")
    own = minimal["source"] == 0
    # Transfer goes 0.1 % further, or less where the box stands in the way.
    ratio = minimal["l2"][own] / smallest["distance"][minimal["probe"][own]]
    assert own.any()
    assert ((ratio >= 1) & (ratio <= 1.001 + 1e-6)).all()
    alone = ("run", "a.onnx", "--probes", "probes.npz", "--peer", "b.onnx")
    refused = onnx_audit(*alone, cwd=tmp_path, expect=2)
    assert "--auditors transfer" in refused.stderr


def test_the_digest_can_be_checked_by_hand(tmp_path: Path) -> None:
    """The recipe of docs/report.md gives the digest, in another folder the same one."""
    models.save(models.mlp(), tmp_path / "model.onnx")
    np.savez(tmp_path / "probes.npz", inputs=models.probes(10, 16))
    digests = []
    for place in ("one", "two"):
        folder = tmp_path / place
        folder.mkdir()
        options = ("--probes", "../probes.npz", "--budget", "20", "--json")
        result = onnx_audit("run", "../model.onnx", *options, cwd=folder)
        report = json.loads(result.stdout)
        digests.append(report.pop("digest"))
        del report["execution"]
        text = json.dumps(report, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        assert hashlib.sha256(text.encode()).hexdigest() == digests[-1]
    assert digests[0] == digests[1]
    shown = onnx_audit("report", "show", "two/onnx-audit-report/report.json", cwd=tmp_path)
    assert digests[0] in shown.stdout


def test_units_of_a_real_model(tmp_path: Path) -> None:
    """Units through a service of its own: figures, and pictures that open, of the right type."""
    data = np.load(shared_data() / "mnist_test_1000.npz")
    np.savez(tmp_path / "probes.npz", inputs=data["images"][:300], labels=data["labels"][:300])
    model = shared_data() / "models" / "mnist_convnet_maxpool.onnx"
    few = ("--unit-directions", "64", "--unit-rotations", "19", "--unit-bases", "pca")
    options = ("--probes", "probes.npz", "--auditors", "units", *few)
    result = onnx_audit("run", model, *options, cwd=tmp_path)
    assert "live units of 32" in result.stdout
    folder = tmp_path / "onnx-audit-report"
    (layer,) = read_report(folder)["units"]["layers"]
    assert [score["kind"] for score in layer["scores"]] == [
        "UNIT_SCORE_KIND_LABEL",
        "UNIT_SCORE_KIND_CONCEPT",
        "UNIT_SCORE_KIND_COHERENCE",
    ]
    pictures = sorted((folder / "units").rglob("*.*"))
    assert len(pictures) == len(layer["galleries"])
    for picture in pictures:
        with Image.open(picture) as image:
            image.load()
            assert {"PNG": ".png", "JPEG": ".jpg"}[str(image.format)] == picture.suffix


def test_exit_statuses(tmp_path: Path) -> None:
    """2 for what the user can mend, 3 for what the service refuses."""
    models.save(models.mlp(), tmp_path / "model.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"no model" * 100)
    np.savez(tmp_path / "probes.npz", inputs=models.probes(4, 16))
    np.savez(tmp_path / "nan.npz", inputs=np.full((4, 16), np.nan, np.float32))
    np.savez(tmp_path / "pickled.npz", inputs=np.array([{}], dtype=object))
    for probes in ("missing.npz", "nan.npz", "pickled.npz"):
        onnx_audit("run", "model.onnx", "--probes", probes, cwd=tmp_path, expect=2)
    bad = onnx_audit("run", "bad.onnx", "--probes", "probes.npz", cwd=tmp_path, expect=2)
    assert "ONNX" in bad.stderr
    away = ("--server", "127.0.0.1:1", "--probes", "probes.npz")
    onnx_audit("run", "model.onnx", *away, cwd=tmp_path, expect=3)


def test_the_demo(tmp_path: Path) -> None:
    """It trains, audits and leaves what it says, and its last advice works."""
    result = onnx_audit("demo", cwd=tmp_path)
    folder = tmp_path / "onnx-audit-demo"
    assert {path.name for path in folder.iterdir()} >= {
        "mlp-a.onnx",
        "mlp-b.onnx",
        "cnn.onnx",
        "probes.npz",
        "report.json",
    }
    section = read_report(folder)["distortion"]
    assert section["clean_accuracy"]["value"] > 0.9
    advice = next(line for line in result.stdout.splitlines() if line.startswith("Do it again:"))
    command = advice.split("onnx-audit ", 1)[1].split()
    onnx_audit(*command, "--max-probes", "8", "--budget", "20", cwd=tmp_path)
