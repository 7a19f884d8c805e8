"""A real Prometheus server for tests, with the project's rules and targets of the test's own."""

from __future__ import annotations

import json
import math
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry, start_http_server
from tests.service import ROOT

from onnx_audit_server import collectors

RULES = ROOT / "deploy" / "prometheus"
START_SECONDS = 30
NAMESPACE = "onnx-audit"
"""What the Prometheus operator would say of where the targets are."""


def program(name: str) -> str:
    """Path of Prometheus or promtool; skips the test where it is missing."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed: apt-get install prometheus")
    return found


class Prometheus:
    """Queries of a running server."""

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str, **parameters: str) -> Any:
        """The `data` of an answer of its API."""
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{query}") as response:  # noqa: S310 - http
            return json.load(response)["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The samples of an instant query that are numbers."""
        found = self.get("query", query=expression)["result"]
        return [sample for sample in found if not math.isnan(float(sample["value"][1]))]

    def wait_for(self, expressions: Sequence[str], seconds: float) -> list[str]:
        """Waits until every query has data; returns those that have none at the end."""
        deadline, missing = time.monotonic() + seconds, list(expressions)
        while True:
            missing = [expression for expression in missing if not self.query(expression)]
            if not missing or time.monotonic() > deadline:
                return missing
            time.sleep(0.5)


@contextmanager
def prometheus(folder: Path, targets: Mapping[str, Sequence[str]]) -> Iterator[Prometheus]:
    """Runs Prometheus in a folder; it scrapes the targets of each job every second."""
    binary = program("prometheus")
    config = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(RULES / "recording.yml"), str(RULES / "alerts.yml")],
        "scrape_configs": [
            {
                "job_name": job,
                "static_configs": [
                    {"targets": list(addresses), "labels": {"namespace": NAMESPACE}}
                ],
            }
            for job, addresses in targets.items()
        ],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [
                binary,
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        server = Prometheus(f"http://127.0.0.1:{port}")
        deadline = time.monotonic() + START_SECONDS
        while not _ready(server.url):
            text = (folder / "prometheus.log").read_text()
            assert process.poll() is None, text
            assert time.monotonic() < deadline, text
            time.sleep(0.1)
        yield server
    finally:
        process.terminate()
        process.wait()


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load((RULES / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def scaling() -> list[str]:
    """The queries by which KEDA scales workers."""
    path = ROOT / "deploy" / "kustomize" / "components" / "keda" / "scaledobject.yaml"
    triggers = yaml.safe_load(path.read_text())["spec"]["triggers"]
    return [trigger["metadata"]["query"] for trigger in triggers]


def operands(expression: str) -> list[str]:
    """What an alert compares: each side of it has to be there for the alert ever to fire."""
    parts = re.split(r"\band(?: on \(\w+\))?(?= )", expression)
    found = []
    for part in parts:
        inner = re.fullmatch(r"absent\((.*)\)", part.strip())
        compared = re.fullmatch(r"(.*?) (?:==|<|>) [\d.]+", part.strip())
        match = inner or compared
        assert match is not None, f"not a comparison: {part}"
        found.append(match[1])
    return found


class Nvml:
    """A GPU whose figures are known, and one that is lost, in the place of NVIDIA's library."""

    NVMLError = RuntimeError

    @staticmethod
    def nvmlInit() -> None:  # noqa: N802 - NVML's name
        """Finds the library."""

    @staticmethod
    def nvmlDeviceGetCount() -> int:  # noqa: N802
        """Two GPUs."""
        return 2

    @staticmethod
    def nvmlDeviceGetHandleByIndex(index: int) -> int:  # noqa: N802
        """The index itself."""
        return index

    @staticmethod
    def nvmlDeviceGetMemoryInfo(device: int) -> SimpleNamespace:  # noqa: N802
        """Of the first; the second has fallen off the bus."""
        if device == 1:
            raise RuntimeError("GPU is lost")
        return SimpleNamespace(used=20 << 30, total=80 << 30)

    @staticmethod
    def nvmlDeviceGetUtilizationRates(_device: int) -> SimpleNamespace:  # noqa: N802
        """In percent."""
        return SimpleNamespace(gpu=75)


@contextmanager
def device_exporter(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Address of an exporter of the device metrics of a machine with a GPU that works."""
    monkeypatch.setattr(collectors, "pynvml", Nvml)
    registry = CollectorRegistry()
    registry.register(collectors.DeviceCollector())
    server, thread = start_http_server(0, "127.0.0.1", registry)
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def _ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/-/ready") as response:  # noqa: S310 - http
            return bool(response.status == 200)
    except (urllib.error.URLError, ConnectionError):
        return False
