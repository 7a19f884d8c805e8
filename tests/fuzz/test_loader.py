"""The reading of models under a fuzzer, and everything that it ever found."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.fuzz import loading
from tests.service import ROOT

CORPUS = Path(__file__).with_name("corpus") / "loader"
"""Small models to begin with, and under `found` those that once were no AuditError."""
SECONDS = int(os.environ.get("ONNX_AUDIT_FUZZ_SECONDS", "60"))
"""How long the fuzzer runs."""
SLOWEST = 120
"""Seconds that one model may take, on a machine that does much else."""


def test_what_was_found_stays_found(tmp_path: Path) -> None:
    """What once broke the reading is taken or refused; what it begins with is taken."""
    (tmp_path / "w.bin").write_bytes(loading.WEIGHTS)
    for path in sorted(CORPUS.rglob("*.onnx")):
        refused = loading.read(path.read_bytes(), tmp_path)
        assert not refused or path.parent.name == "found", path.name


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_fuzzer_finds_nothing(tmp_path: Path) -> None:
    """Whatever the bytes are, reading them ends soon, in little memory, with one kind of error."""
    pytest.importorskip("atheris", reason="this Python has no atheris")
    seeds = tmp_path / "seeds"
    seeds.mkdir()
    for path in CORPUS.rglob("*.onnx"):
        shutil.copy(path, seeds)
    options = [
        f"-max_total_time={SECONDS}", f"-timeout={SLOWEST}", "-rss_limit_mb=4096", "-max_len=4096",
        f"-artifact_prefix={tmp_path}/",
    ]  # fmt: skip
    paths = [str(ROOT / name) for name in ("", "client", "auditors", "server")]
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.loading", str(seeds), *options],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=SECONDS + 600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    assert "\tDONE " in done.stderr, done.stderr[-2000:]
