"""Promises 1 and 2, against every crash of recorded stories: killed, torn, or without power."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from ray_imuckpt.storage import local
from ray_imuckpt.storage.local import LocalStorage
from support.invariants import Tally
from support.stories import STORIES, Story
from support.sweeps import crashes, requests


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.name)
def test_nothing_is_lost_or_torn_by_a_crash_at_any_operation(
    story: Story, tmp_path: Path, tally: Tally
) -> None:
    """Each state lists what was committed and nothing else, resumes from the right one, saves."""
    found = crashes(story, tmp_path, most=16, share=0.1)
    tally.merge(found)
    assert found.reports == []


@pytest.mark.parametrize("how", ["die", "refuse", "lose"])
@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.name)
def test_nothing_is_lost_or_torn_by_a_fault_at_any_request_to_an_object_store(
    story: Story, how: str, tally: Tally
) -> None:
    """The process dies, the store refuses, or its answer is lost."""
    found = requests(story, how)
    tally.merge(found)
    assert found.reports == []


def _without_sync_of_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_sync_directory", lambda path: None)


def _without_sync_of_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    def only_directories(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            os.fsync(descriptor)

    monkeypatch.setattr(local, "os", _Os(fsync=only_directories))


def _with_the_files_deleted_first(monkeypatch: pytest.MonkeyPatch) -> None:
    real = LocalStorage.delete

    def delete(self: LocalStorage, name: str) -> None:
        if name.endswith("manifest.json"):
            for other in self.files(os.path.dirname(name)):
                real(self, f"{os.path.dirname(name)}/{other}")
        real(self, name)

    monkeypatch.setattr(LocalStorage, "delete", delete)


class _Os:
    """`os` with other functions."""

    def __init__(self, **others: Any) -> None:
        self._others = others

    def __getattr__(self, name: str) -> Any:
        return self._others.get(name) or getattr(os, name)


@pytest.mark.parametrize(
    ("plant", "kind"),
    [
        (_without_sync_of_names, "lost"),
        (_without_sync_of_bytes, "torn"),
        (_with_the_files_deleted_first, "torn"),
    ],
)
def test_the_sweep_finds_a_storage_that_does_it_wrong(
    plant: Any, kind: str, tmp_path: Path, tally: Tally, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sweep that found nothing there would prove nothing elsewhere."""
    plant(monkeypatch)
    story = STORIES[4] if plant is _with_the_files_deleted_first else STORIES[0]
    assert crashes(story, tmp_path, most=16, share=0.1).broken[kind]
