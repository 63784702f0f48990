"""Promises 1 and 2, against every crash of recorded stories: killed, torn, or without power."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ray_imuckpt.storage.local import LocalStorage
from support.disk.operations import SyncDirectory, SyncFile
from support.faults.invariants import Tally
from support.faults.stories import STORIES, Story
from support.faults.sweeps import crashes, requests


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.name)
def test_nothing_is_lost_or_torn_by_a_crash_at_any_operation(
    story: Story, tmp_path: Path, tally: Tally
) -> None:
    """Each state lists what was committed and nothing else, resumes from the right one, saves."""
    found = crashes(story, tmp_path, most=8, share=0.05)
    tally.merge(found)
    assert found.reports == []


@pytest.mark.parametrize("how", ["die", "refuse", "lose"])
@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.name)
def test_nothing_is_lost_or_torn_by_a_fault_at_a_request_to_an_object_store(
    story: Story, how: str, tally: Tally
) -> None:
    """The process dies, the store refuses, or its answer is lost."""
    found = requests(story, how, stride=4)  # each one: make soak
    tally.merge(found)
    assert found.reports == []


@pytest.mark.parametrize(
    ("forgotten", "kind"), [(SyncDirectory, "lost"), (SyncFile, "torn")], ids=["names", "bytes"]
)
def test_the_sweep_finds_that_something_is_not_synced(
    forgotten: type, kind: str, tmp_path: Path, tally: Tally
) -> None:
    """A sweep that found nothing there would prove nothing elsewhere."""
    found = crashes(STORIES[0], tmp_path, most=16, share=0.1, unsaid=(forgotten,))
    assert found.broken[kind]


def test_the_sweep_finds_that_files_are_deleted_before_their_manifest(
    tmp_path: Path, tally: Tally, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sweep that found nothing there would prove nothing elsewhere."""
    real = LocalStorage.delete_if

    def delete_if(self: LocalStorage, name: str, seen: bytes) -> bool:
        directory, base = os.path.split(name)
        for other in self.files(directory):
            if other != base:
                self.delete(f"{directory}/{other}")
        return real(self, name, seen)

    monkeypatch.setattr(LocalStorage, "delete_if", delete_if)
    pruned = next(story for story in STORIES if story.name == "pruned")
    assert crashes(pruned, tmp_path, most=16, share=0.0).broken["torn"]
