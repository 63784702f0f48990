"""What a test tells a simulated store, and asks it, over a port of its own. Touches sockets.

Each is a POST to ``/_control/<command>`` with a JSON object, answered by another; objects travel
by ``GET`` and ``PUT`` of ``/_control/object?bucket=…&key=…``. The port answers while the store is
down.
"""

from __future__ import annotations

import dataclasses
import http.server
import json
import time
import urllib.parse
from collections.abc import Callable
from typing import Any, cast

from tools.simulated_store.faults import Fault
from tools.simulated_store.holdings import RefusalError
from tools.simulated_store.service import Service
from tools.simulated_store.settings import Settings

PATH = "/_control"


def carry_out(service: Service, command: str, given: dict[str, Any]) -> Any:
    """Carry out a command and return what JSON can hold.

    Raises:
        ValueError: There is no such command.
    """
    holdings = service.holdings

    def configure() -> None:
        service.settings = Settings(**given)

    def fail() -> None:
        service.faults.replace(Fault.from_json(fault) for fault in given["faults"])

    commands: dict[str, Callable[[], Any]] = {
        "settings": configure,
        "faults": fail,
        "met": service.faults.met,
        "report": lambda: dataclasses.asdict(service.meter.report),
        "reset": service.meter.reset,
        "objects": lambda: {k: found.size for k, found in holdings.listed(given["bucket"], "")},
        "uploads": lambda: [(u.key, len(u.parts)) for u in holdings.uploads(given["bucket"])],
        "make bucket": lambda: holdings.make_bucket(given["bucket"]),
        "delete": lambda: holdings.delete(given["bucket"], given["key"]),
        "clear": holdings.clear,
        "up": service.up,
        "down": service.down,
        "deliver": service.deliver,
    }
    if command not in commands:
        raise ValueError(f"There is no command {command!r}.")
    return commands[command]()


class ControlServer(http.server.ThreadingHTTPServer):
    """Listens for commands to a service, on a free port of the loopback."""

    daemon_threads = True

    def __init__(self, service: Service) -> None:
        self.service = service
        super().__init__(("127.0.0.1", 0), _Control)


class _Control(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_POST(self) -> None:
        """Carry out a command."""
        command = urllib.parse.unquote(self.path.removeprefix(f"{PATH}/"))
        try:
            found = carry_out(self._service, command, json.loads(self._body() or b"{}"))
        except (RefusalError, ValueError, TypeError, KeyError) as error:
            self._reply(400, f"{type(error).__name__}: {error}".encode())
        else:
            self._reply(200, json.dumps(found).encode())

    def do_GET(self) -> None:
        """Show an object."""
        bucket, key = self._named()
        try:
            found = self._service.holdings.get(bucket, key)
        except RefusalError as refusal:
            self._reply(refusal.status, refusal.code.encode())
        else:
            self._reply(200, b"".join(found.pieces))

    def do_PUT(self) -> None:
        """Put an object, past all faults."""
        bucket, key = self._named()
        holdings = self._service.holdings
        now = time.time() + self._service.settings.ahead
        holdings.put(bucket, key, holdings.made([memoryview(self._body())], now))
        self._reply(200, b"")

    @property
    def _service(self) -> Service:
        return cast(ControlServer, self.server).service

    def _named(self) -> tuple[str, str]:
        query = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(self.path).query))
        return query["bucket"], query["key"]

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _reply(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
