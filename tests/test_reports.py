"""Reports to the surroundings: in the order of epochs, and without what has failed."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any, cast

import pytest

from ray_imuckpt import SaveFailedError
from ray_imuckpt.reporting.reports import Report, Reports
from ray_imuckpt.runtime.session import SavedEpoch, Session
from ray_imuckpt.saving.operation import SaveOperation
from ray_imuckpt.storage import Storage, open_storage


class Surroundings:
    """Notes what is reported to it."""

    surroundings = "Somebody"

    def __init__(self, directory: Path) -> None:
        self.run_directory = open_storage(str(directory))
        self.heard: list[tuple[Any, int | None]] = []

    def report(self, metrics: Any, storage: Storage, saved: SavedEpoch | None) -> None:
        """Note metrics and the epoch of the checkpoint."""
        self.heard.append((metrics, None if saved is None else saved.epoch))


@pytest.fixture
def somebody(tmp_path: Path) -> Surroundings:
    """Surroundings that want to hear of checkpoints."""
    return Surroundings(tmp_path)


def report_of(
    somebody: Surroundings, metrics: dict[str, Any] | None, operation: SaveOperation | None = None
) -> Report:
    """Return a report to them."""
    return Report(cast(Session, somebody), metrics, somebody.run_directory, operation)


def test_what_waits_for_a_save_keeps_what_comes_later_waiting(somebody: Surroundings) -> None:
    """Metrics of later epochs are not heard before those of earlier ones."""
    reports, first, second = Reports(), SaveOperation(1), SaveOperation(3)
    reports.add(report_of(somebody, {"epoch": 1}, first), hold=True)
    reports.add(report_of(somebody, {"epoch": 2}))
    reports.add(report_of(somebody, {"epoch": 3}, second), hold=True)
    reports.flush()
    assert somebody.heard == []
    first.end()
    reports.flush()
    assert somebody.heard == [({"epoch": 1}, 1), ({"epoch": 2}, None)]
    second.end(SaveFailedError("full"), tolerated=True)
    reports.add(report_of(somebody, {"epoch": 4}))
    assert somebody.heard[2:] == [({"epoch": 3}, None), ({"epoch": 4}, None)]


def test_a_failed_save_without_metrics_is_not_reported(somebody: Surroundings) -> None:
    """There is nothing to say."""
    reports, operation = Reports(), SaveOperation(1)
    reports.add(report_of(somebody, None, operation), hold=True)
    operation.end(SaveFailedError("full"), tolerated=True)
    reports.flush()
    assert somebody.heard == []


def test_what_need_not_wait_is_reported_at_once(somebody: Surroundings) -> None:
    """The surroundings wait for the save themselves."""
    Reports().add(report_of(somebody, {"epoch": 1}, SaveOperation(1)))
    assert somebody.heard == [({"epoch": 1}, 1)]


def test_a_checkpoint_that_nobody_heard_of_is_a_warning_when_training_ends(
    somebody: Surroundings, caplog: pytest.LogCaptureFixture
) -> None:
    """The thread that trains is gone, and with it the next call."""
    reports = Reports()

    def train() -> None:
        reports.add(report_of(somebody, {"epoch": 1}, SaveOperation(1)), hold=True)

    with caplog.at_level(logging.WARNING, "ray_imuckpt"):
        thread = threading.Thread(target=train)
        thread.start()
        thread.join()
    assert "before Somebody heard of the checkpoint of epoch 1" in caplog.text
