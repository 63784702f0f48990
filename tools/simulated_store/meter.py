"""What was asked of a simulated store, counted. Touches nothing."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

from tools.simulated_store.requests import Request

_LONGEST_LOG = 20_000


@dataclass(frozen=True)
class Seen:
    """One request that was seen.

    Attributes:
        kind: As in `requests.Request`.
        key: The object's, or the prefix of a listing.
        range: What the header of this name said.
    """

    kind: str
    key: str
    range: str


@dataclass
class Report:
    """What was asked since the last reset.

    Attributes:
        requests: How many of each kind.
        refused: How many were answered by an error, or not at all.
        bytes_in: Bytes of bodies that came.
        bytes_out: Bytes of bodies that were sent.
        connections: How many were opened.
        peak_connections: How many were open at once, at most.
        peak_requests: How many requests were under way at once, at most.
        round_trips: The longest row of requests of which each came after the answer to the one
            before: so many latencies at most went by.
        log: Each request, in the order in which they came; the first 20,000.
    """

    requests: dict[str, int] = field(default_factory=dict)
    refused: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    connections: int = 0
    peak_connections: int = 0
    peak_requests: int = 0
    round_trips: int = 0
    log: list[Seen] = field(default_factory=list)


class Meter:
    """Counts requests; any thread may."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open = self._busy = 0
        self._since = 0  # which reset: a request that began before it is not counted at its end
        self.report = Report()

    def reset(self) -> None:
        """Begin to count anew."""
        with self._lock:
            self.report = Report(peak_connections=self._open)
            self._since += 1

    @contextlib.contextmanager
    def connection(self) -> Iterator[None]:
        """Count an open connection."""
        with self._lock:
            self._open += 1
            self.report.connections += 1
            self.report.peak_connections = max(self.report.peak_connections, self._open)
        try:
            yield
        finally:
            with self._lock:
                self._open -= 1

    @contextlib.contextmanager
    def request(self, request: Request) -> Iterator[None]:
        """Count a request that is under way."""
        key = request.key or request.query.get("prefix", "")
        with self._lock:
            self._busy += 1
            since, report = self._since, self.report
            report.requests[request.kind] = report.requests.get(request.kind, 0) + 1
            report.peak_requests = max(report.peak_requests, self._busy)
            if len(report.log) < _LONGEST_LOG:
                report.log.append(Seen(request.kind, key, request.headers.get("range", "")))
            depth = report.round_trips + 1  # behind all that have been answered by now
        try:
            yield
        finally:
            with self._lock:
                self._busy -= 1
                if since == self._since:
                    report.round_trips = max(report.round_trips, depth)

    def add(self, *, bytes_in: int = 0, bytes_out: int = 0, refused: int = 0) -> None:
        """Add to the sums."""
        with self._lock:
            self.report.bytes_in += bytes_in
            self.report.bytes_out += bytes_out
            self.report.refused += refused
