"""One server for all tests of a module that do not harm it."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest
from tests import models
from tests.service import ServiceProcess

from onnx_audit import Client, v1


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """A running server with a worker."""
    with ServiceProcess(tmp_path_factory.mktemp("service") / "data") as process:
        yield process


@pytest.fixture(scope="module")
def client(service: ServiceProcess) -> Iterator[Client]:
    """A client of the running server."""
    with service.client() as client:
        yield client


@pytest.fixture(scope="module")
def channel(service: ServiceProcess) -> Iterator[grpc.Channel]:
    """A bare channel to the running server, for what the client library never does."""
    with grpc.insecure_channel(service.target) as channel:
        yield channel


@pytest.fixture(scope="module")
def model(client: Client, tmp_path_factory: pytest.TempPathFactory) -> v1.Model:
    """A registered model of 16 inputs and 4 classes."""
    folder = tmp_path_factory.mktemp("model")
    return client.upload_model(models.save(models.mlp(), folder / "mlp.onnx"))


@pytest.fixture(scope="module")
def probe_set(client: Client) -> v1.ProbeSet:
    """Registered probes that fit the model."""
    return client.upload_probes(models.probes(40, 16))
