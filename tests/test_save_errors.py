"""``on_save_error="warn"``: a storage hiccup is not the end, an error of the user's always is."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from ray_imuckpt import Checkpointer, SaveFailedError, UnsupportedStateError
from ray_imuckpt.storage.local import LocalStorage


class Disk:
    """A disk that is full while it is told so."""

    def __init__(self) -> None:
        self.full = False


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    """Every data file of every local directory goes to it."""
    disk, real = Disk(), LocalStorage.write

    def write(self: LocalStorage, *arguments: Any) -> None:
        if disk.full:
            raise OSError(28, "No space left on device")
        real(self, *arguments)

    monkeypatch.setattr(LocalStorage, "write", write)
    return disk


MODEL = nn.Linear(2, 2)


def saved(checkpointer: Checkpointer, epoch: int) -> None:
    """Save an epoch and wait for it."""
    checkpointer.checkpoint(epoch, model=MODEL)
    checkpointer.wait()


@pytest.mark.parametrize("blocking", [False, True])
def test_training_goes_on_after_saves_that_failed(
    tmp_path: Path, disk: Disk, blocking: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Each is a warning; nothing of it is listed, and the next one that works is a checkpoint."""
    checkpointer = Checkpointer(tmp_path, blocking=blocking, on_save_error="warn")
    with caplog.at_level(logging.WARNING, "ray_imuckpt"):
        for epoch in range(1, 8):
            disk.full = epoch in (2, 3, 5)
            pending = checkpointer.checkpoint(epoch, model=MODEL)
            assert pending is not None
            pending.wait()
            assert (pending.error is not None) == disk.full
    assert checkpointer.list_existing_checkpoint_indices() == [1, 4, 6, 7]
    assert caplog.text.count("training goes on") == 3
    assert "2 in a row" in caplog.text
    assert "No space left on device" in caplog.text
    assert not list(tmp_path.glob("checkpoint=2/*"))


@pytest.mark.parametrize("blocking", [False, True])
def test_more_failures_in_a_row_than_are_tolerated_end_the_run(
    tmp_path: Path, disk: Disk, blocking: bool
) -> None:
    """A run whose checkpoints are all lost must not train on for days."""
    checkpointer = Checkpointer(
        tmp_path, blocking=blocking, on_save_error="warn", max_failed_saves=2
    )
    checkpointer.checkpoint(1, model=MODEL)
    checkpointer.wait()
    disk.full = True
    for epoch in (2, 3):
        checkpointer.checkpoint(epoch, model=MODEL)
        checkpointer.wait()
    with pytest.raises(SaveFailedError, match="No space left") as caught:
        saved(checkpointer, 4)
    assert caught.value.epoch == 4
    disk.full = False
    checkpointer.checkpoint(5, model=MODEL)
    checkpointer.wait()
    assert checkpointer.list_existing_checkpoint_indices() == [1, 5]


def test_a_failure_that_is_found_at_the_next_epoch_does_not_keep_it_from_being_saved(
    tmp_path: Path, disk: Disk
) -> None:
    """The call that learns of it goes on with its own save."""
    checkpointer = Checkpointer(tmp_path, on_save_error="warn")
    disk.full = True
    pending = checkpointer.checkpoint(1, model=MODEL)
    assert pending is not None
    while not pending.done():
        pass
    disk.full = False
    checkpointer.checkpoint(2, model=MODEL)
    checkpointer.wait()
    assert isinstance(pending.error, SaveFailedError)
    with pytest.raises(SaveFailedError):
        pending.checkpoint  # noqa: B018 - a property
    assert checkpointer.list_existing_checkpoint_indices() == [2]


def test_what_cannot_be_stored_is_an_error_all_the_same(tmp_path: Path) -> None:
    """No later save of the same would work."""
    checkpointer = Checkpointer(tmp_path, on_save_error="warn")
    with pytest.raises(UnsupportedStateError):
        checkpointer.checkpoint(1, model=MODEL, hook=print)


def test_a_second_run_in_the_directory_is_an_error_all_the_same(tmp_path: Path) -> None:
    """Every later save of the one that came first would fail as well."""
    first = Checkpointer(tmp_path, on_save_error="warn", blocking=True)
    first.start(MODEL)
    first.checkpoint(1, model=MODEL)
    second = Checkpointer(tmp_path, blocking=True)
    second.start(MODEL)
    second.checkpoint(2, model=MODEL)
    with pytest.raises(SaveFailedError, match="has begun to save here"):
        first.checkpoint(3, model=MODEL)


def test_left_alone_a_failed_save_is_an_error(tmp_path: Path, disk: Disk) -> None:
    """To train on without checkpoints is a choice that the user makes."""
    checkpointer = Checkpointer(tmp_path, blocking=True)
    disk.full = True
    with pytest.raises(SaveFailedError):
        checkpointer.checkpoint(1, model=MODEL)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"on_save_error": "ignore"}, ValueError, "Choose 'raise' or 'warn'"),
        ({"on_save_error": None}, ValueError, "Choose 'raise' or 'warn'"),
        ({"on_save_error": "warn", "max_failed_saves": 0}, ValueError, "tolerates nothing"),
        ({"on_save_error": "warn", "max_failed_saves": 1.5}, TypeError, "an int is wanted"),
    ],
)
def test_choices_that_are_none_are_refused_at_construction(
    options: dict[str, Any], error: type[Exception], text: str
) -> None:
    """They are told on the driver, before any worker is started."""
    with pytest.raises(error, match=text):
        Checkpointer("somewhere", **options)
