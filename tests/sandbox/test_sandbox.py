"""What a runner can still do once it is confined, tried from inside a real one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from onnx_audit_server.jobs import process
from onnx_audit_server.jobs.confinement import announce, sandbox_means
from onnx_audit_server.jobs.process import RunnerError, RunnerProcess
from onnx_audit_server.jobs.scratch import ScratchFolder
from onnx_audit_server.sandbox.confine import Means
from onnx_audit_server.settings import Settings

ROOT = Path(__file__).resolve().parents[2]


def test_an_exploited_runner_reaches_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Network, files of others, links, programs and signals are refused; its own folder is not."""
    if sandbox_means().missing:
        pytest.skip(f"this kernel lacks {sandbox_means().missing}")
    (tmp_path / "onnx-audit.sqlite").write_bytes(b"records")
    monkeypatch.setattr(process, "RUNNER", "tests.sandbox.hostile_runner")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("ONNX_AUDIT_DATABASE_URL", "postgresql://audit:hunter2@db/audit")
    settings = Settings(data=tmp_path, database_url="")
    runner = RunnerProcess(settings, tmp_path / "scratch")
    assert runner.scratch.stat().st_mode & 0o777 == 0o700
    result = runner.scratch / "result"
    try:
        command = {"op": "attempt", "outside": str(tmp_path), "result": str(result)}
        runner.call(command, lambda: None)
        found = json.loads(runner.result(result))
        (runner.scratch / "link").symlink_to(tmp_path / "onnx-audit.sqlite")
        with pytest.raises(RunnerError, match="no result"):
            runner.result(runner.scratch / "link")
    finally:
        runner.kill()
    assert "hunter2" not in found.pop("environment")
    assert found.pop("own file") == "done"
    assert set(found.values()) == {"PermissionError"}, found
    assert (tmp_path / "onnx-audit.sqlite").read_bytes() == b"records"
    assert not runner.scratch.exists()


def test_a_demanded_sandbox_that_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service does not start; without the demand it does."""
    monkeypatch.setattr(
        "onnx_audit_server.jobs.confinement.sandbox_means", lambda: Means(0, seccomp=False)
    )
    announce(Settings(data=tmp_path))
    with pytest.raises(RuntimeError, match="landlock"):
        announce(Settings(data=tmp_path, sandbox="require"))


def test_scratch_folders_of_dead_processes_go(tmp_path: Path) -> None:
    """What nobody has locked is removed, what a living process has stays."""
    (tmp_path / "api-1" / "runner-x").mkdir(parents=True)
    first = ScratchFolder(tmp_path, "local")
    second = ScratchFolder(tmp_path, "other")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["local", "other"]
    second.close()
    first.close()
    assert not list(tmp_path.iterdir())
