"""Fixtures: each server is started for the first test that wants it, and stopped after the last."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tools.simulated_store import SimulatedStore


@pytest.fixture(scope="session")
def simulated_store_process() -> Iterator[SimulatedStore]:
    """A simulated store, as the test before left it."""
    with SimulatedStore() as store:
        yield store


@pytest.fixture
def simulated_store(simulated_store_process: SimulatedStore) -> SimulatedStore:
    """A simulated store that is empty, fast and without faults."""
    simulated_store_process.start_over()
    return simulated_store_process
