"""Which checkpoint is "the last", whatever two runs, a prune and faults do to one directory."""

from __future__ import annotations

import pytest

from support.faults.invariants import Tally
from support.faults.two_runs import drive


def test_the_last_checkpoint_is_of_the_branch_that_was_committed_last(
    tally: Tally, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two writers, prune beside rewind, lost and old records, wrong clocks, removal by hand."""
    drive(monkeypatch, stories=200, steps=25)
