"""Promise 10 in the background: rules given once, old checkpoints that go after each commit."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from conftest import small_model, train
from ray_imuckpt import Checkpointer, Retention, SaveFailedError
from ray_imuckpt.storage.local import LocalStorage


@pytest.mark.parametrize("blocking", [False, True])
def test_after_each_commit_what_no_rule_keeps_goes(tmp_path: Path, blocking: bool) -> None:
    """The newest, every fourth and the two best stay, and each of those is sound."""
    rules = Retention(keep_last=2, keep_every=4, keep_best=("loss", "min", 2))
    checkpointer = Checkpointer(tmp_path, retention=rules, blocking=blocking)
    losses = [5.0, 1.0, 3.0, 4.0, 2.0, 6.0, 7.0, 8.0, 9.0]
    for epoch, loss in enumerate(losses, 1):
        checkpointer.checkpoint(epoch, model=nn.Linear(2, 2), metrics={"loss": loss})
        checkpointer.wait()
        seen = losses[:epoch]
        best = sorted(range(1, epoch + 1), key=lambda e: seen[e - 1])[:2]
        fourth = [e for e in range(1, epoch + 1) if e % 4 == 0]
        expected = sorted({epoch, max(1, epoch - 1), *best, *fourth})
        assert checkpointer.list_existing_checkpoint_indices() == expected
        for kept in expected:
            checkpointer.verify(kept)


def test_nothing_goes_for_a_save_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a newer checkpoint that is committed lets an older one go."""
    checkpointer = Checkpointer(tmp_path, retention=Retention(keep_last=1), blocking=True)
    model = nn.Linear(2, 2)
    checkpointer.checkpoint(1, model=model)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(LocalStorage, "write", full)
        with pytest.raises(SaveFailedError):
            checkpointer.checkpoint(2, model=model)
    assert checkpointer.list_existing_checkpoint_indices() == [1]
    checkpointer.verify(1)
    checkpointer.checkpoint(3, model=model)
    assert checkpointer.list_existing_checkpoint_indices() == [3]


def test_what_the_run_was_resumed_from_stays(tmp_path: Path) -> None:
    """The way back to where this run began is never deleted, also by a later process."""
    train(tmp_path, 3)
    for begin, expected in ((4, [3, 5]), (6, [5, 7])):
        checkpointer = Checkpointer(tmp_path, retention=Retention(keep_last=1))
        model = small_model()
        assert checkpointer.start(model).start_epoch == begin
        for epoch in (begin, begin + 1):
            checkpointer.checkpoint(epoch, model=model)
        checkpointer.wait()
        assert checkpointer.list_existing_checkpoint_indices() == expected


def test_what_another_branch_left_behind_stays(tmp_path: Path) -> None:
    """Rules are for the run's own branch; nothing abandoned is deleted unasked."""
    train(tmp_path, 4)
    checkpointer = Checkpointer(tmp_path, continue_from=2, retention=Retention(keep_last=1))
    model = small_model()
    checkpointer.start(model)
    for epoch in (5, 6):
        checkpointer.checkpoint(epoch, model=model)
    checkpointer.wait()
    assert checkpointer.list_existing_checkpoint_indices() == [2, 3, 4, 6]


def test_what_this_process_has_written_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what another process has written is verified, once, before an older one goes."""
    read: list[str] = []
    real = LocalStorage.read_into

    def read_into(self: LocalStorage, name: str, *rest: Any) -> None:
        read.append(name)
        real(self, name, *rest)

    monkeypatch.setattr(LocalStorage, "read_into", read_into)
    checkpointer = Checkpointer(tmp_path, retention=Retention(keep_last=1), blocking=True)
    for epoch in (1, 2, 3):
        checkpointer.checkpoint(epoch, model=nn.Linear(2, 2))
    assert checkpointer.prune(keep_last=1) == []
    assert read == []
    other = Checkpointer(tmp_path)
    other.prune(keep_last=1)
    assert read, "another process has not written it"
    assert {name.split("/")[0] for name in read} == {"checkpoint=3"}


def test_a_checkpoint_of_another_process_that_rotted_lets_nothing_go(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What counts as the newest sound one was written or verified by this process."""
    checkpointer = Checkpointer(tmp_path, retention=Retention(keep_last=1), blocking=True)
    checkpointer.checkpoint(5, model=nn.Linear(2, 2))
    other = Checkpointer(tmp_path, blocking=True)
    other.checkpoint(9, model=nn.Linear(2, 2))
    data = next((tmp_path / "checkpoint=9").glob("model-*"))
    data.write_bytes(data.read_bytes()[:-1] + b"?")
    checkpointer.checkpoint(4, model=nn.Linear(2, 2))
    left = checkpointer.list_existing_checkpoint_indices()
    assert 5 in left, "9, the newest, is damaged"
    assert "Not counting a damaged checkpoint" in caplog.text


def test_a_deletion_that_fails_is_a_warning_and_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The run goes on, and nothing is reported but what is committed."""
    checkpointer = Checkpointer(tmp_path, retention=Retention(keep_last=1))
    model = nn.Linear(2, 2)
    checkpointer.checkpoint(1, model=model)
    checkpointer.wait()

    def denied(*_: Any) -> bool:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, "ray_imuckpt"):
        patch.setattr(LocalStorage, "delete_if", denied)
        pending = checkpointer.checkpoint(2, model=model)
        assert pending is not None
        pending.wait()
    assert "could not be deleted" in caplog.text
    assert "Permission denied" in caplog.text
    assert checkpointer.list_existing_checkpoint_indices() == [1, 2]
    checkpointer.checkpoint(3, model=model)
    checkpointer.wait()
    assert checkpointer.list_existing_checkpoint_indices() == [3]


def test_rules_that_are_none_are_refused_at_construction(tmp_path: Path) -> None:
    """They are told on the driver, before any worker is started."""
    with pytest.raises(TypeError, match="Retention is wanted"):
        Checkpointer(tmp_path, retention={"keep_last": 1})  # type: ignore[arg-type]
