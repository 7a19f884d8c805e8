"""What a release ships, built and installed as its users do: real environments, no repository."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from tests import models
from tests.service import ROOT, ServiceProcess

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]

EPOCH = "1764000000"
SBOM = ROOT / ".tools-sbom" / "bin" / "python"


def run(*command: str | Path, cwd: Path, **variables: str) -> str:
    """Runs a program that knows nothing of this repository or its environment."""
    kept = {n: v for n, v in os.environ.items() if n not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        command, cwd=cwd, env=kept | variables, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(folder: Path) -> dict[str, Path]:
    """Wheel and sdist, by suffix."""
    folder.mkdir()
    run(
        *(sys.executable, "-m", "build", "--outdir", folder, ROOT),
        cwd=folder,
        SOURCE_DATE_EPOCH=EPOCH,
        PIP_CONSTRAINT=str(ROOT / "constraints.txt"),
    )
    return {path.suffix: path for path in folder.iterdir()}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One build for all tests."""
    return build(tmp_path_factory.mktemp("release") / "dist")


def environment(folder: Path, wheel: Path, extras: str) -> Path:
    """The programs of an empty environment in which the wheel was installed."""
    venv.create(folder, with_pip=True)
    pip = (folder / "bin" / "python", "-m", "pip", "install", "--quiet")
    constraints = ("-c", ROOT / "constraints.txt")
    run(*pip, *constraints, f"onnx-audit{extras} @ file://{wheel}", cwd=folder)
    return folder / "bin"


def test_the_same_commit_gives_the_same_files(built: dict[str, Path], tmp_path: Path) -> None:
    """Wheel and sdist are the same to the byte in two builds."""
    again = build(tmp_path / "again")
    assert built.keys() == again.keys() == {".whl", ".gz"}
    for suffix, path in built.items():
        first, second = (hashlib.sha256(p.read_bytes()).digest() for p in (path, again[suffix]))
        assert first == second, path.name


def test_the_package_alone_is_a_client(built: dict[str, Path], tmp_path: Path) -> None:
    """Without extras it is light, and audits on a server."""
    programs = environment(tmp_path / "venv", built[".whl"], "")
    listed = json.loads(run(programs / "pip", "list", "--format", "json", cwd=tmp_path))
    names = {package["name"].lower() for package in listed}
    assert not names & {"torch", "onnx", "onnxruntime", "scipy", "sqlalchemy", "dbos"}
    model = models.save(models.mlp((16, 8, 4), seed=0), tmp_path / "model.onnx")
    code = (
        "import sys, numpy as np; r = np.random.default_rng(0);"
        "np.savez(sys.argv[1], inputs=r.random((20, 16), np.float32))"
    )
    run(programs / "python", "-c", code, tmp_path / "probes.npz", cwd=tmp_path)
    with ServiceProcess(tmp_path / "data") as service:
        run(
            *(programs / "onnx-audit", "run", model, "--probes", tmp_path / "probes.npz"),
            *("--box", "0,1", "--budget", "quick", "--server", service.target, "--out", "report"),
            cwd=tmp_path,
        )
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert int(report["distortion"]["probe_count"]) == 20  # JSON has 64-bit integers as strings


def test_the_demo_runs_from_the_wheel(built: dict[str, Path], tmp_path: Path) -> None:
    """From nothing to a report, with all that it needs from the wheel and the index."""
    programs = environment(tmp_path / "venv", built[".whl"], "[demo]")
    home = tmp_path / "home"
    home.mkdir()
    said = run(programs / "onnx-audit", "demo", "--out", "demo", cwd=tmp_path, HOME=str(home))
    assert "Median L2 distortion" in said
    assert "Certified L2 radius" in said
    assert json.loads((tmp_path / "demo" / "report.json").read_text())["digest"]
    where = run(
        programs / "python",
        "-c",
        "import onnx_audit_server; print(onnx_audit_server.__file__)",
        cwd=tmp_path,
    )
    assert Path(where).is_relative_to(tmp_path)


@pytest.mark.skipif(not SBOM.exists(), reason="`make .tools-sbom/installed` brings CycloneDX")
def test_the_bill_of_materials_is_what_pip_installs(tmp_path: Path) -> None:
    """Names and versions are pinned ones, and those that the extras need by pip's own account."""
    site = Path(sys.prefix) / "lib" / f"python3.{sys.version_info.minor}" / "site-packages"
    script = (SBOM, ROOT / "deploy" / "sbom.py", "--site", site, "--extras", "server")
    bills = []
    for name in ("first.json", "second.json"):
        run(*script, "--output", tmp_path / name, cwd=tmp_path, SOURCE_DATE_EPOCH=EPOCH)
        bills.append((tmp_path / name).read_bytes())
    assert bills[0] == bills[1]
    bill = json.loads(bills[0])
    found = {(c["name"], c["version"].partition("+")[0]) for c in bill["components"]}
    planned = run(
        *(sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"),
        *("--report", "-", "-c", ROOT / "constraints.txt", f"{ROOT}[server]"),
        cwd=tmp_path,
    )
    expected = {
        (
            item["metadata"]["name"].lower().replace("_", "-").replace(".", "-"),
            item["metadata"]["version"].partition("+")[0],
        )
        for item in json.loads(planned)["install"]
    }
    assert found == expected - {("onnx-audit", bill["metadata"]["component"]["version"])}
