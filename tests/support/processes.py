"""The tests on two processes (pytest-xdist), as `make test` runs them.

The tests of a file stay together and in order, for their fixtures are dear. Those that start Ray
are one group: two clusters at once would take each other's cores. What takes longest begins first,
or one process would end alone.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections import Counter
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.faults.invariants import Tally

RAY = "ray"
_WITH_RAY = ("test_ray_", "test_documents", "test_examples", "test_surroundings")
_LONG = ("test_gang", "test_crash", "test_same_run", "test_storm", "test_lost_ranks")

TALLY = pytest.StashKey[Tally]()
MISSING = pytest.StashKey[dict[str, None]]()
"""The names of what is not installed here."""


def pytest_configure(config: pytest.Config) -> None:
    """Begin to count the crash states of the whole test run, and to note what is missing."""
    config.stash[TALLY] = Tally()
    config.stash[MISSING] = {}
    config.addinivalue_line("markers", "xdist_group(name): of the tests that one process runs")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Say which tests one process runs; the long ones first."""
    for item in items:
        item.add_marker(pytest.mark.xdist_group(_group(item)))
    items.sort(key=_urgency)


def _group(item: pytest.Item) -> str:
    return RAY if item.path.name.startswith(_WITH_RAY) else item.path.stem


def _urgency(item: pytest.Item) -> int:
    return 0 if _group(item) == RAY else 1 if item.path.name.startswith(_LONG) else 2


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand over what this process has counted, where it is one of several."""
    output = getattr(session.config, "workeroutput", None)  # only there, says pytest-xdist
    if output is not None:
        tally = session.config.stash[TALLY]
        output["tally"] = [dict(tally.checked), dict(tally.broken)]
        missing = session.config.stash[MISSING]
        output["missing"] = list(missing)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take what one of several processes has counted."""
    output = getattr(node, "workeroutput", {})  # none of one that has died
    checked, broken = output.get("tally", ({}, {}))
    node.config.stash[TALLY].merge(Tally(Counter(checked), Counter(broken)))
    node.config.stash[MISSING].update(dict.fromkeys(output.get("missing", ())))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> Generator[None, None, None]:
    """Tell how many crash states were checked; and what is missing, last, so that none counts."""
    yield
    tally, missing = config.stash[TALLY], config.stash[MISSING]
    if tally.checked:
        terminalreporter.write_line(str(tally))
    if missing:
        names = ", ".join(missing)
        terminalreporter.write_line(f"not tried, since not installed here: {names}", yellow=True)


@pytest.fixture
def tally(
    pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Tally]:
    """Counts crash states; while they are checked, no disk is waited for and no log is written."""
    logger = logging.getLogger("ray_imuckpt")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield pytestconfig.stash[TALLY]
    logger.setLevel(level)
