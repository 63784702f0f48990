"""How a simulated store behaves while nothing fails. Values, touches nothing."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """The behaviour of a store.

    Attributes:
        latency: Seconds that pass before a request is looked at.
        rate: Bytes a second of one connection, either way; 0 for as fast as it goes.
        lag: How many changes a listing is behind.
        page: Names in one page of a listing.
        conditions: Whether ``If-Match`` and ``If-None-Match`` of a put are kept; some servers pass
            them over.
        ahead: Seconds by which its clock is ahead of this machine's.
    """

    latency: float = 0.0
    rate: float = 0.0
    lag: int = 0
    page: int = 1000
    conditions: bool = True
    ahead: float = 0.0
