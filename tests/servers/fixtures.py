"""Fixtures: each server is started for the first test that wants it, and stopped after the last.

What is not installed on this machine is skipped and named in the last lines of pytest's output.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TypeVar

import pytest

from servers import azurite, gcs, loopback, moto, sftp
from servers.processes import NotInstalledError
from support.processes import MISSING
from tools.simulated_store import SimulatedStore

Server = TypeVar("Server")


def pytest_configure(config: pytest.Config) -> None:
    """Turn off what would speak gRPC to a fake that does not."""
    del config
    os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"  # read when gcsfs is imported


def _started(
    request: pytest.FixtureRequest, server: contextlib.AbstractContextManager[Server]
) -> Iterator[Server]:
    """Yield a server that runs, or skip and note that it is missing."""
    with contextlib.ExitStack() as stack:
        try:
            found = stack.enter_context(server)
        except NotInstalledError as error:
            request.config.stash[MISSING][str(error)] = None
            pytest.skip(f"not installed: {error}")
        yield found


@pytest.fixture
def loopback_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing connect beyond the loopback, and no client find credentials."""
    loopback.guard(monkeypatch)


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


@pytest.fixture(scope="session")
def moto_server(request: pytest.FixtureRequest) -> Iterator[moto.MotoServer]:
    """S3 by moto's server, as the test before left it."""
    yield from _started(request, moto.moto_server())


@pytest.fixture(scope="session")
def azurite_server(request: pytest.FixtureRequest) -> Iterator[azurite.Azurite]:
    """Azure's blobs by Azurite, as the test before left them."""
    yield from _started(request, azurite.azurite())


@pytest.fixture(scope="session")
def google_server(request: pytest.FixtureRequest) -> Iterator[gcs.GoogleServer]:
    """Google's store by fake-gcs-server, as the test before left it."""
    yield from _started(request, gcs.google_server())


@pytest.fixture(scope="session")
def sshd_server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[sftp.Sshd]:
    """An sshd with files, as the test before left them."""
    yield from _started(request, sftp.sshd(tmp_path_factory.mktemp("sshd")))
