"""A service in this process and a client of either kind for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from tests.client.clients import open_client
from tests.client.fake_service import FakeService, serving


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
def address(service: FakeService) -> Iterator[str]:
    with serving(service) as address:
        yield address


@pytest.fixture(params=["sync", "async"])
def client(request: pytest.FixtureRequest, address: str) -> Iterator[Any]:
    client = open_client(request.param, address)
    yield client
    client.close()
