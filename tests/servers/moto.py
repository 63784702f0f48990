"""S3 by moto's server, and a way to look at it past any client of ours."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from servers.processes import NotInstalledError, free_port, running
from servers.wire import ask

BUCKET = "bucket"
_SIGNED = "AWS4-HMAC-SHA256 Credential=nobody/20260101/us-east-1/s3/aws4_request, Signature=none"


@dataclass(frozen=True)
class MotoServer:
    """A server of moto's.

    Attributes:
        port: Of the loopback.
    """

    port: int

    @property
    def options(self) -> dict[str, Any]:
        """Return the ``storage_options`` for s3fs; moto takes any credentials."""
        endpoint = f"http://127.0.0.1:{self.port}"
        return {"key": "nobody", "secret": "nothing", "endpoint_url": endpoint}

    def ask(self, method: str, path: str, body: bytes = b"") -> bytes:
        """Return the body of an answer.

        Raises:
            FileNotFoundError: It is an error.
        """
        return ask(self.port, method, path, body, Authorization=_SIGNED)

    def keys(self) -> list[str]:
        """Return the keys of all objects."""
        root = ET.fromstring(self.ask("GET", f"/{BUCKET}?list-type=2"))
        return [found.text or "" for found in root.iterfind("{*}Contents/{*}Key")]


@contextlib.contextmanager
def moto_server() -> Iterator[MotoServer]:
    """Run moto's server with an empty bucket.

    Raises:
        NotInstalledError: moto is not there.
    """
    if importlib.util.find_spec("moto") is None or importlib.util.find_spec("flask") is None:
        raise NotInstalledError("moto's server (pip install 'ray-imuckpt[dev]')")
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with running(command, port, PYTHONWARNINGS="ignore"):
        server = MotoServer(port)
        server.ask("PUT", f"/{BUCKET}")
        yield server
