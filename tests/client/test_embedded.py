"""The service that a command starts for itself, with a stand-in for the server's code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import onnx_audit
from onnx_audit import Client, embedded
from onnx_audit.embedded import EmbeddedService, EmbeddedServiceError, default_data_folder

ROOT = Path(__file__).resolve().parents[2]

# Serves tests.client.fake_service as the server's command line would, and logs its end.
SERVER = """
import json, os, pathlib, signal, sys, threading
options = dict(zip(sys.argv[2::2], sys.argv[3::2]))
assert sys.argv[1] == "serve" and options["--listen"] == "127.0.0.1:0"
print("data", options["--data"], file=sys.stderr, flush=True)
if os.environ.get("STAND_IN") == "dies":
    sys.exit("another service runs on this folder")
if os.environ.get("STAND_IN") == "hangs":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
from tests.client.fake_service import FakeService, serving
stop = threading.Event()
if os.environ.get("STAND_IN") != "hangs":
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
with serving(FakeService()) as address:
    ready = pathlib.Path(options["--ready-file"])
    partial = ready.with_suffix(".part")
    partial.write_text(json.dumps({"grpc": address, "http": None}))
    partial.rename(ready)
    pathlib.Path(options["--data"], "pid").write_text(str(os.getpid()))
    stop.wait()
print("stopped in good order", file=sys.stderr)
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder, and a package `onnx_audit_server` that children find before any other."""
    package = tmp_path / "code" / "onnx_audit_server"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(SERVER)
    paths = [package.parent, Path(onnx_audit.__file__).parents[1], ROOT]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, paths)))
    return tmp_path / "data"


def running(data: Path) -> bool:
    """Whether the stand-in's process is there."""
    try:
        os.kill(int((data / "pid").read_text()), 0)
    except ProcessLookupError:
        return False
    return True


def test_service_runs_for_the_block_and_is_stopped(stand_in: Path) -> None:
    """The address answers inside the block; afterwards the process has ended in good order."""
    with EmbeddedService(stand_in) as service, Client(service.target) as client:
        assert list(client.models()) == []
        assert running(stand_in)
    assert not running(stand_in)
    log = (stand_in / "server.log").read_text()
    assert log == f"data {stand_in}\nstopped in good order\n"


def test_service_is_stopped_when_the_block_fails(stand_in: Path) -> None:
    """An exception in the block leaves no process behind."""
    with pytest.raises(KeyError), EmbeddedService(stand_in):
        raise KeyError
    assert not running(stand_in)


def test_service_that_does_not_stop_is_killed(
    stand_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service that ignores the request to stop is killed after the grace."""
    monkeypatch.setenv("STAND_IN", "hangs")
    monkeypatch.setattr(embedded, "_STOP_SECONDS", 0.2)
    with EmbeddedService(stand_in):
        pass
    assert not running(stand_in)


def test_death_shows_the_last_lines_of_this_run(
    stand_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the service dies at once its own explanation is in the error, older runs' are not."""
    stand_in.mkdir()
    (stand_in / "server.log").write_text("from an earlier run\n")
    monkeypatch.setenv("STAND_IN", "dies")
    with pytest.raises(EmbeddedServiceError, match="another service runs on this folder") as error:
        EmbeddedService(stand_in).__enter__()
    assert "earlier run" not in str(error.value)
    assert "server.log" in str(error.value)


def test_missing_extra_says_what_to_install(
    stand_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the server's libraries nothing is started, and the error names the extra."""
    monkeypatch.setattr(embedded, "_REQUIRED", ("no_such_library",))
    with pytest.raises(EmbeddedServiceError, match=r"pip install 'onnx-audit\[server\]'"):
        EmbeddedService(stand_in).__enter__()
    assert not stand_in.exists()


def test_unusable_data_folder_is_explained(stand_in: Path) -> None:
    """A data folder that cannot be made is an error that names --data."""
    stand_in.write_text("a file")
    with pytest.raises(EmbeddedServiceError, match="--data"):
        EmbeddedService(stand_in).__enter__()


def test_default_data_folder_follows_xdg(monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder lies under $XDG_DATA_HOME, or where that points by default."""
    monkeypatch.setenv("XDG_DATA_HOME", "/x")
    assert default_data_folder() == Path("/x/onnx-audit")
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", "/home/a")
    assert default_data_folder() == Path("/home/a/.local/share/onnx-audit")


def test_terminated_command_stops_its_service(stand_in: Path) -> None:
    """SIGTERM to the command takes the service down with it."""
    code = (
        "import signal, time; from onnx_audit.cli import app;"
        "from onnx_audit.embedded import EmbeddedService; from pathlib import Path;"
        "signal.signal(signal.SIGTERM, app._terminate);"
        f"service = EmbeddedService(Path({str(stand_in)!r}));"
        "service.__enter__();\n"
        "try:\n  print('up', flush=True); time.sleep(60)\nfinally:\n  service.stop()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 128 + signal.SIGTERM
    deadline = time.monotonic() + 10
    while running(stand_in) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not running(stand_in)
