"""Bodies over a connection, at the speed that one has. Touches sockets."""

from __future__ import annotations

import io
import socket
import time
from collections.abc import Iterable, Mapping

_BLOCK = 256 * 1024  # bytes that are moved before the time is looked at


class BrokenConnectionError(Exception):
    """The connection ends here, without an answer."""


class Pace:
    """Lets bytes through at a rate.

    Args:
        rate: Bytes a second; 0 for as fast as it goes.
    """

    def __init__(self, rate: float) -> None:
        self._rate, self._begun = rate, time.monotonic()

    def passed(self, size: int) -> None:
        """Wait until so many bytes may have passed since the beginning."""
        if self._rate and (early := self._begun + size / self._rate - time.monotonic()) > 0:
            time.sleep(early)


def read(
    stream: io.BufferedReader, headers: Mapping[str, str], rate: float, *, half: bool = False
) -> list[memoryview]:
    """Return the body of a request, without what HTTP and S3 put around its chunks.

    Args:
        stream: The connection.
        headers: By their names in lower case.
        rate: Bytes a second; 0 for as fast as it goes.
        half: Break off in the middle.

    Raises:
        BrokenConnectionError: The client is gone, or `half`.
    """
    if "chunked" in headers.get("transfer-encoding", ""):
        body = [_read_chunks(stream, rate)]
        if half:
            raise BrokenConnectionError
    else:
        size = int(headers.get("content-length") or 0)
        body = [_read_all(stream, size // 2 if half else size, rate)] if size else []
        if half:
            raise BrokenConnectionError
    signed = headers.get("x-amz-content-sha256", "").startswith("STREAMING-")
    if body and (signed or "aws-chunked" in headers.get("content-encoding", "")):
        return _dechunked(body[0])
    return body


def _read_all(stream: io.BufferedReader, size: int, rate: float) -> memoryview:
    view = memoryview(bytearray(size))
    pace, done = Pace(rate), 0
    while done < size:
        count = stream.readinto(view[done : done + _BLOCK])
        if not count:
            raise BrokenConnectionError
        done += count
        pace.passed(done)
    return view.toreadonly()


def _read_chunks(stream: io.BufferedReader, rate: float) -> memoryview:
    """Return a body whose size is told chunk by chunk (RFC 9112, 7.1)."""
    body = bytearray()
    pace = Pace(rate)
    while size := int(stream.readline().split(b";")[0] or b"0", 16):
        chunk = stream.read(size)
        stream.readline()
        if len(chunk) < size:
            raise BrokenConnectionError
        body += chunk
        pace.passed(len(body))
    while stream.readline().strip():  # trailers
        pass
    return memoryview(body).toreadonly()


def _dechunked(body: memoryview) -> list[memoryview]:
    """Return the data in S3's own chunks, each behind a line with its size and signature."""
    pieces: list[memoryview] = []
    at = 0
    while True:
        end = bytes(body[at : at + 200]).index(b"\r\n")
        size = int(bytes(body[at : at + end]).split(b";")[0], 16)
        if not size:
            return pieces
        at += end + 2
        pieces.append(body[at : at + size])
        at += size + 2


def send(
    connection: socket.socket, head: bytes, body: Iterable[bytes | memoryview], rate: float
) -> None:
    """Send an answer."""
    pieces = [memoryview(piece) for piece in body if len(piece)]
    if sum(map(len, pieces)) < _BLOCK:
        connection.sendall(b"".join([head, *pieces]))
        return
    connection.sendall(head)
    pace, done = Pace(rate), 0
    for piece in pieces:
        for begin in range(0, len(piece), _BLOCK):
            block = piece[begin : begin + _BLOCK]
            connection.sendall(block)
            done += len(block)
            pace.passed(done)
