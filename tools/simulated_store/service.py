"""The service that answers S3's requests; goes down and comes up. Touches sockets and threads."""

from __future__ import annotations

import http.server
import io
import socket
import socketserver
import struct
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, cast

from tools.simulated_store import bodies, requests
from tools.simulated_store.answers import Answer, Asked, answer, error
from tools.simulated_store.bodies import BrokenConnectionError
from tools.simulated_store.faults import REFUSALS, Action, Faults
from tools.simulated_store.holdings import Holdings
from tools.simulated_store.meter import Meter
from tools.simulated_store.settings import Settings

_BUFFER = 256 * 1024  # bytes of a socket's: a client is to feel the rate of a connection
_NO_LINGER = struct.pack("ii", 1, 0)


class Service:
    """A simulated store: what it holds, how it behaves, and a port of the loopback.

    Attributes:
        holdings: What it holds.
        faults: Which requests fail.
        meter: What was asked.
        settings: How it behaves.
        late: What is done by requests that are delivered late.
    """

    def __init__(self) -> None:
        self.holdings = Holdings()
        self.faults = Faults()
        self.meter = Meter()
        self.settings = Settings()
        self.late: list[Callable[[], object]] = []
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._server: _Server | None = None
        self.port = 0

    def up(self) -> None:
        """Listen, on the same port as ever; nothing happens when it is listening."""
        if self._server is None:
            self._server = _Server(self, self.port)
            self.port = self._server.server_address[1]
            threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def down(self) -> None:
        """Listen no more and break all connections, as if the process were killed."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()
        self.faults.end_silence()
        with self._lock:
            for connection in self._connections:
                _break(connection)

    @property
    def is_down(self) -> bool:
        """Return whether nobody listens."""
        return self._server is None

    def deliver(self) -> int:
        """Do what came late; return how many requests that were."""
        late, self.late = self.late, []
        for do in late:
            do()
        return len(late)

    def opened(self, connection: socket.socket) -> None:
        """Note a connection."""
        with self._lock:
            self._connections.add(connection)

    def closed(self, connection: socket.socket) -> None:
        """Forget a connection."""
        with self._lock:
            self._connections.discard(connection)

    def do(self, request: requests.Request, body: Sequence[memoryview]) -> Answer:
        """Do what is asked.

        Raises:
            BrokenConnectionError: The store has gone down meanwhile; nothing is done.
        """
        if self.is_down:
            raise BrokenConnectionError
        settings = self.settings
        return answer(self.holdings, Asked(request, body, settings, time.time() + settings.ahead))


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 256

    def __init__(self, service: Service, port: int) -> None:
        self.service = service
        super().__init__(("127.0.0.1", port), _Connection, bind_and_activate=False)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        self.server_bind()
        self.server_activate()

    def shutdown_request(self, request: Any) -> None:
        """Close the connection; what was broken is not ended in peace first."""
        self.close_request(request)


class _Connection(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def handle(self) -> None:
        service = cast(_Server, self.server).service
        service.opened(self.connection)
        try:
            with service.meter.connection():
                super().handle()
        except (OSError, ValueError):
            pass  # the client is gone
        finally:
            service.closed(self.connection)

    def log_message(self, *_: object) -> None:
        """Say nothing; the meter counts."""

    def _serve(self) -> None:
        service = cast(_Server, self.server).service
        request = requests.parse(self.command, self.path, dict(self.headers.items()))
        with service.meter.request(request):
            try:
                self._answer(service, request)
            except BrokenConnectionError:
                service.meter.add(refused=1)
                _linger_not(self.connection)
                self.close_connection = True

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _serve  # noqa: N815 - as the base class asks

    def _answer(self, service: Service, request: requests.Request) -> None:
        action, silence = service.faults.of(request)
        rate = service.settings.rate
        time.sleep(service.settings.latency)
        if action is Action.SILENCE:
            silence.wait()
            raise BrokenConnectionError
        body = bodies.read(
            cast(io.BufferedReader, self.rfile),
            request.headers,
            rate,
            half=action is Action.RESET_REQUEST,
        )
        service.meter.add(bytes_in=sum(map(len, body)))
        found = _acted(service, request, body, action)
        cut = found.size // 2 if action is Action.RESET_ANSWER else None
        self._send(found, rate, cut)
        service.meter.add(bytes_out=found.size, refused=found.status >= 400)
        if cut is not None:
            raise BrokenConnectionError

    def _send(self, found: Answer, rate: float, cut: int | None) -> None:
        size = found.size if found.length is None else found.length
        headers = {"x-amz-request-id": "simulated", **found.headers, "Content-Length": str(size)}
        lines = [f"HTTP/1.1 {found.status} Simulated", *(f"{k}: {v}" for k, v in headers.items())]
        head = "\r\n".join([*lines, "", ""]).encode()
        body = found.body if cut is None else _cut(found.body, cut)
        bodies.send(self.connection, head, () if self.command == "HEAD" else body, rate)


def _acted(
    service: Service, request: requests.Request, body: list[memoryview], action: Action | None
) -> Answer:
    """Do what is asked, or what is to become of it."""
    if action is Action.LATE:
        service.late.append(lambda: service.do(request, body))
        raise BrokenConnectionError
    if action is Action.VANISHED:
        return Answer(200, headers={"ETag": service.holdings.made([], 0).tag})
    if action is Action.ERROR_INSIDE:
        return error(REFUSALS[Action.ERROR], request.key, status=200)
    if action in REFUSALS:
        return error(REFUSALS[action], request.key)
    found = service.do(request, body)
    if action is Action.LOST:
        raise BrokenConnectionError
    if action is Action.SHORT:
        return Answer(found.status, _cut(found.body, found.size // 2), found.headers)
    return found


def _cut(body: Sequence[bytes | memoryview], size: int) -> list[memoryview]:
    cut = []
    for piece in body:
        cut.append(memoryview(piece)[:size])
        size = max(0, size - len(piece))
    return cut


def _linger_not(connection: socket.socket) -> None:
    """Let the end of a connection be a reset."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)


def _break(connection: socket.socket) -> None:
    """End a connection that another thread is waiting for."""
    try:
        _linger_not(connection)
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # it has ended by itself
