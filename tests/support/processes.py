"""The tests on several processes (pytest-xdist), as `make test` runs them.

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
BLOCKS_WITH_RAY = "test_the_code_of_a_document_runs_with_what_takes_long"
_WITH_RAY = (  # parts of the names of tests
    *(f"/test_ray_{name}.py::" for name in ("lightning", "policies", "train", "transformers")),
    "/test_ray_tune.py::",
    *("/test_examples.py::test_ray_", f"::{BLOCKS_WITH_RAY}"),
)
_LONG = (
    "test_documents",
    *("test_crash_sweep", "test_races", "test_same_run", "test_store_faults", "test_power_loss"),
    *("test_gang", "test_lost_ranks", "test_storm", "test_engines", "test_kills"),
)

_OF_RAY = {
    # It takes one report at each look at its workers: by default, every two seconds.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",  # a minute is short on a busy machine
}

TALLY = pytest.StashKey[Tally]()
MISSING = pytest.StashKey[dict[str, None]]()
"""The names of what is not installed here."""
GROUPS = pytest.StashKey[dict[str, None]]()
"""The groups of tests that were run."""


def pytest_configure(config: pytest.Config) -> None:
    """Begin to count the crash states of the whole test run, and to note what is missing.

    Each run of Ray Train inherits how patient and how lively it is, whoever starts it.
    """
    for name, value in _OF_RAY.items():
        os.environ.setdefault(name, value)
    config.stash[TALLY] = Tally()
    config.stash[MISSING], config.stash[GROUPS] = {}, {}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the long ones begin first."""
    items.sort(key=lambda item: _urgency(item.nodeid))


def group_of(nodeid: str) -> str:
    """Return which tests have to be run by the process that runs this one."""
    with_ray = any(part in nodeid for part in _WITH_RAY)
    return RAY if with_ray else nodeid.partition("::")[0]


def _urgency(nodeid: str) -> int:
    group = group_of(nodeid)
    return 0 if group == RAY else 1 if Path(group).name.startswith(_LONG) else 2


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Deal the groups in the order of their first tests."""
    from xdist.scheduler import LoadScopeScheduling  # only where it is asked

    class ByGroup(LoadScopeScheduling):
        # Named so in the documentation of pytest-xdist, which has no public one: "loadgroup" needs
        # an attribute that pytest 9.2 has no more. `pytest_testnodedown` notices if it is not used.
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    config.option.loadscopereorder = False
    return ByGroup(config, log)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Note which group is run by this process."""
    item.config.stash[GROUPS].setdefault(group_of(item.nodeid), None)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand over what this process has counted, where it is one of several."""
    output = getattr(session.config, "workeroutput", None)  # only there, says pytest-xdist
    if output is not None:
        tally = session.config.stash[TALLY]
        output["tally"] = [dict(tally.checked), dict(tally.broken)]
        for name, names in (("missing", MISSING), ("groups", GROUPS)):
            found = session.config.stash[names]
            output[name] = list(found)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take what one of several processes has counted; no group may have been run by two."""
    output = getattr(node, "workeroutput", {})  # none of one that has died
    checked, broken = output.get("tally", ({}, {}))
    node.config.stash[TALLY].merge(Tally(Counter(checked), Counter(broken)))
    node.config.stash[MISSING].update(dict.fromkeys(output.get("missing", ())))
    groups = dict.fromkeys(output.get("groups", ()))
    twice = groups.keys() & node.config.stash[GROUPS].keys()
    if twice:
        raise RuntimeError(f"{min(twice)} was run by two processes: is `ByGroup` used?")
    node.config.stash[GROUPS].update(groups)


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
