"""Promise 1 after two faults: a failing or dying process, and then the power goes.

What was told to be committed must be there when the power comes back, also when an fsync had failed
before it, or a process had been killed between making a name and syncing it.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from support.disk.operations import SyncDirectory, SyncFile
from support.faults.invariants import Tally
from support.faults.stories import (
    Story,
    branched,
    first_saves,
    nothing,
    three_epochs,
)
from support.faults.sweeps import second_faults

TOLD = (
    Story("first saves", nothing, first_saves),
    Story("branched", three_epochs, branched),
)


@pytest.mark.parametrize("story", TOLD, ids=lambda story: story.name)
def test_what_was_told_to_be_committed_after_a_failing_fsync_is_there_after_power_loss(
    story: Story, tmp_path: Path, tally: Tally
) -> None:
    """An fsync says EIO once; the bytes it could not write are lost, whatever a later one says."""
    found = second_faults(
        story, tmp_path, "fail", SyncFile, SyncDirectory, share=0.0, share_at_marks=0.1
    )
    tally.merge(found)
    assert found.reports == []


@pytest.mark.parametrize("story", TOLD, ids=lambda story: story.name)
def test_what_was_told_to_be_committed_after_a_kill_is_there_after_power_loss(
    story: Story, tmp_path: Path, tally: Tally
) -> None:
    """The second process builds upon names that the first one made and did not sync."""
    found = second_faults(story, tmp_path, "kill", share=0.0, share_at_marks=0.02)
    tally.merge(found)
    assert found.reports == []
