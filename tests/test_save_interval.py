"""`save_interval`: a checkpoint when so long has passed, alone or beside `save_every`."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from ray_imuckpt import Checkpointer, training

MODEL = nn.Linear(2, 2)


class Clock:
    """A clock that stands still until it is set."""

    def __init__(self) -> None:
        self.now = 1000.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock by which saves are due."""
    clock = Clock()
    times = SimpleNamespace(monotonic=lambda: clock.now, perf_counter=lambda: clock.now)
    monkeypatch.setattr(training, "time", times)
    return clock


def saved(checkpointer: Checkpointer, clock: Clock, seconds: float, last: int) -> list[int]:
    """Train epochs of so many seconds, and return those that were saved."""
    found = []
    for epoch in range(1, last + 1):
        clock.now += seconds
        if checkpointer.checkpoint(epoch, model=MODEL) is not None:
            found.append(epoch)
    checkpointer.wait()
    assert checkpointer.list_existing_checkpoint_indices() == found
    return found


@pytest.mark.parametrize("interval", [100, 100.0, timedelta(seconds=100)])
def test_alone_it_decides_by_the_time_since_the_last_save(
    tmp_path: Path, clock: Clock, interval: Any
) -> None:
    """Epochs of 30 s: after the fourth, the eighth and so on."""
    checkpointer = Checkpointer(tmp_path, save_interval=interval)
    checkpointer.start(MODEL)
    assert saved(checkpointer, clock, 30, 12) == [4, 8, 12]


def test_beside_save_every_whichever_comes_first(tmp_path: Path, clock: Clock) -> None:
    """Multiples of five, and when 100 s have passed; each save begins a new interval."""
    checkpointer = Checkpointer(tmp_path, save_every=5, save_interval=100)
    assert saved(checkpointer, clock, 30, 12) == [4, 5, 9, 10]


def test_the_interval_begins_with_the_training(tmp_path: Path, clock: Clock) -> None:
    """What a restore takes, or what lies between construction and start, does not count."""
    checkpointer = Checkpointer(tmp_path, save_interval=100)
    clock.now += 1000
    checkpointer.start(MODEL)
    assert saved(checkpointer, clock, 30, 4) == [4]


def test_a_forced_save_begins_a_new_interval(tmp_path: Path, clock: Clock) -> None:
    """No second one follows right after it."""
    checkpointer = Checkpointer(tmp_path, save_interval=100)
    clock.now += 90
    assert checkpointer.checkpoint(1, model=MODEL, force=True) is not None
    clock.now += 90
    assert checkpointer.checkpoint(2, model=MODEL) is None
    clock.now += 10
    assert checkpointer.checkpoint(3, model=MODEL) is not None
    checkpointer.wait()


@pytest.mark.parametrize("value", [0, -1, "10 min", True, float("nan")])
def test_an_interval_that_is_none_is_refused_at_construction(value: Any) -> None:
    """It is told on the driver, before any worker is started."""
    with pytest.raises((ValueError, TypeError), match="save_interval"):
        Checkpointer("somewhere", save_interval=value)
