"""How many requests an act makes one after the other, however busy the machine is."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from tools.simulated_store import Report, Settings, SimulatedStore

T = TypeVar("T")

_LATENCIES = (0.2, 0.8, 3.2)  # seconds


def check_round_trips(
    store: SimulatedStore, most: int, prepare: Callable[[], T], act: Callable[[T], object]
) -> Report:
    """Check that an act takes so many round trips at most, and return what it asked.

    What is asked at once comes at once, unless a machine is so busy that one request is answered
    before the next one is sent. Then all is done again, with answers that come later.

    Args:
        store: Is emptied before.
        most: How many round trips there may be.
        prepare: Makes what the act is done to.
        act: What is counted.
    """
    for latency in _LATENCIES:
        store.start_over()
        prepared = prepare()
        store.configure(Settings(latency=latency))
        store.reset()
        act(prepared)
        report = store.report()
        store.configure(Settings())
        if report.round_trips <= most:
            return report
    raise AssertionError(f"There were {report.round_trips} round trips, and may be {most}.")
