"""What tests of units share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from tests.auditors.units import planted
from tests.auditors.units.planted import World


@pytest.fixture(scope="session")
def world() -> World:
    """1,600 images with planted concepts."""
    return planted.world(1600)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Many small products are faster on one thread, above all beside other tests."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
