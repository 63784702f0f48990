"""Azure's blobs by Azurite, and a way to look at them past any client of ours."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from servers.processes import NotInstalledError, free_port, running

ACCOUNT = "devstoreaccount1"
# What every Azurite has, and no account of Azure's; not a secret.
_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
CONTAINER = "container"


@dataclass(frozen=True)
class Azurite:
    """An Azurite.

    Attributes:
        port: Of the loopback.
    """

    port: int

    @property
    def connection_string(self) -> str:
        """Return what Azure's own clients connect with."""
        return (
            f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={_KEY};"
            f"BlobEndpoint=http://127.0.0.1:{self.port}/{ACCOUNT};"
        )

    @property
    def options(self) -> dict[str, Any]:
        """Return the ``storage_options`` for adlfs."""
        return {"account_name": ACCOUNT, "connection_string": self.connection_string}

    @property
    def container(self) -> Any:
        """Return Azure's own client of the container."""
        from azure.storage.blob import ContainerClient

        return ContainerClient.from_connection_string(self.connection_string, CONTAINER)


@contextlib.contextmanager
def azurite() -> Iterator[Azurite]:
    """Run an Azurite with an empty container, all in memory.

    Raises:
        NotInstalledError: It is not there, or Node.js is not.
    """
    beside = os.path.join(sys.prefix, "node_modules", ".bin")
    path = os.pathsep.join([beside, os.environ.get("PATH", "")])
    program = shutil.which("azurite-blob", path=path)
    if program is None or shutil.which("node") is None:
        raise NotInstalledError("Azurite (npm, and then make clean test)")
    port = free_port()
    command = [program, "--silent", "--inMemoryPersistence", "--disableTelemetry", "--loose"]
    command += ["--skipApiVersionCheck", "--blobPort", str(port)]
    with running(command, port, PATH=path):
        server = Azurite(port)
        with server.container as container:
            container.create_container()
        yield server
