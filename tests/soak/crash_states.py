"""The crash sweeps of `make test`, with every state that they draw from: more than 10,000.

`SOAK_SHARE` is the share of the states of a double fault that is checked.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from support.disk.operations import SyncDirectory, SyncFile
from support.faults.invariants import Tally
from support.faults.stories import STORIES, Story
from support.faults.sweeps import crashes, requests, second_faults
from support.faults.two_runs import drive

SHARE = float(os.environ.get("SOAK_SHARE", "0.02"))


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.name)
def test_every_crash_of_a_story(story: Story, tmp_path: Path, tally: Tally) -> None:
    """Killed before each operation, torn in each write, and up to 48 subsets of unsynced names."""
    found = crashes(story, tmp_path, most=48, share=1.0)
    tally.merge(found)
    assert found.reports == []


@pytest.mark.parametrize("how", ["die", "refuse", "lose"])
@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.name)
def test_a_fault_at_any_request_to_an_object_store(story: Story, how: str, tally: Tally) -> None:
    """The process dies, the store refuses, or its answer is lost, at each request."""
    found = requests(story, how)
    tally.merge(found)
    assert found.reports == []


@pytest.mark.parametrize("how", ["fail", "kill"])
@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.name)
def test_power_loss_after_another_fault(
    story: Story, how: str, tmp_path: Path, tally: Tally
) -> None:
    """Each fsync fails, or the process dies at each operation; then the power goes."""
    kinds = (SyncFile, SyncDirectory) if how == "fail" else ()
    found = second_faults(story, tmp_path, how, *kinds, share=SHARE, share_at_marks=0.5)
    tally.merge(found)
    assert found.reports == []


def test_the_lineage_of_long_stories(tally: Tally, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state machine of `make test`, with 25 times as many stories of twice the length."""
    drive(monkeypatch, stories=5000, steps=50, derandomize=False)
