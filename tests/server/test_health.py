"""The port for health checks: plaintext, alone, and in step with the process's life."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tests.service import ServiceProcess

from onnx_audit import Client
from onnx_audit.errors import Unimplemented
from onnx_audit_server import health


def test_only_health_is_on_the_port_and_it_goes_before_the_process(tmp_path: Path) -> None:
    """SERVING while it serves, no other method, NOT_SERVING or nothing once it drains."""
    with ServiceProcess(tmp_path / "data", "--health", "127.0.0.1:0") as process:
        address = process.addresses["health"]
        assert address != process.target
        assert health.check(address) == "SERVING"
        with Client(address, timeout=10) as client, pytest.raises(Unimplemented):
            client.get_audit("audits/20260101-000000-abcdef")
        with grpc.insecure_channel(address) as channel:
            stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
            asked = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
            with pytest.raises(grpc.RpcError) as refused:
                next(stub.ServerReflectionInfo(asked))
            assert refused.value.code() == grpc.StatusCode.UNIMPLEMENTED
        command = [sys.executable, "-m", "onnx_audit_server.health"]
        asked_for = os.environ | {"ONNX_AUDIT_HEALTH": address}
        assert subprocess.run(command, env=asked_for, check=False).returncode == 0
        process.signal(signal.SIGTERM)
        states = set()
        while (state := health.check(address)) != "UNAVAILABLE":
            states.add(state)
            time.sleep(0.01)
        assert process.wait() == 0
        assert states <= {"SERVING", "NOT_SERVING"}
        assert subprocess.run(command, env=asked_for, check=False).returncode == 1


@pytest.mark.slow
def test_a_worker_without_an_api_answers_too(tmp_path: Path) -> None:
    """A worker's pod is probed like a server's."""
    arguments = ("--health", "127.0.0.1:0")
    with ServiceProcess(tmp_path / "data", *arguments, command="worker") as process:
        assert health.check(process.addresses["health"]) == "SERVING"
        assert process.addresses["grpc"] is None


@pytest.mark.slow
def test_a_port_that_is_taken_ends_the_start(tmp_path: Path) -> None:
    """Two processes do not share a health port silently."""
    with ServiceProcess(tmp_path / "first", "--health", "127.0.0.1:0") as first:
        second = ServiceProcess(tmp_path / "second", "--health", first.addresses["health"])
        with pytest.raises(AssertionError, match="Error: Failed to bind to address"):
            second.start()
