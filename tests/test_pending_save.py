"""`PendingSave`: what a user sees of a save, while it is written and once it has ended."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from ray_imuckpt import Checkpointer, PendingSave, SaveFailedError, load
from ray_imuckpt.storage.local import LocalStorage
from support.waiting import PATIENCE

MODEL = nn.Linear(2, 2)


def begun(checkpointer: Checkpointer, epoch: int) -> PendingSave:
    pending = checkpointer.checkpoint(epoch, model=MODEL)
    assert pending is not None
    return pending


def fill_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(LocalStorage, "write", full)


def test_its_repr_says_which_save_how_far_and_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it is written, when it is committed, and when it failed."""
    go_on = threading.Event()
    checkpointer = Checkpointer(
        tmp_path, on_commit=lambda *_: go_on.wait(PATIENCE), on_save_error="warn"
    )
    pending = begun(checkpointer, 4)
    url = tmp_path / "checkpoint=4"
    assert repr(pending) == f"<PendingSave of epoch 4: writing, {url}>"
    assert (pending.state, pending.path, pending.done()) == ("writing", str(url), False)
    go_on.set()
    pending.wait()
    assert repr(pending) == f"<PendingSave of epoch 4: committed, {url}>"
    fill_the_disk(monkeypatch)
    failed = begun(checkpointer, 5)
    failed.wait()
    assert repr(failed) == f"<PendingSave of epoch 5: failed, {tmp_path / 'checkpoint=5'}>"


def test_a_done_callback_is_called_once_on_the_thread_that_writes(tmp_path: Path) -> None:
    """After `on_commit`; what it is given has ended, and can be read, and waiting costs nothing."""
    order: list[str] = []
    go_on = threading.Event()

    def committed(*_: object) -> None:
        go_on.wait(PATIENCE)
        order.append("on_commit")

    def done(pending: PendingSave) -> None:
        pending.wait()
        load(nn.Linear(2, 2), pending.path)
        order.append(f"{pending.state}, {pending.error}, {threading.current_thread().name}")

    checkpointer = Checkpointer(tmp_path, on_commit=committed)
    pending = begun(checkpointer, 1)
    pending.add_done_callback(done)
    assert order == []
    go_on.set()
    checkpointer.wait()
    assert order == ["on_commit", "committed, None, imuckpt-save"]


@pytest.mark.parametrize("blocking", [True, False])
def test_a_done_callback_is_called_at_once_where_the_save_is_done(
    tmp_path: Path, *, blocking: bool
) -> None:
    """On the thread that adds it, each one once."""
    pending = begun(Checkpointer(tmp_path, blocking=blocking), 1)
    pending.wait()
    calls: list[tuple[PendingSave, int]] = []
    for _ in range(2):
        pending.add_done_callback(lambda save: calls.append((save, threading.get_ident())))
    assert calls == [(pending, threading.get_ident())] * 2


def test_a_done_callback_learns_how_a_save_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the next call of the loop raises it; asking for the checkpoint raises it as well."""
    fill_the_disk(monkeypatch)
    found: list[object] = []
    checkpointer = Checkpointer(tmp_path)

    def done(pending: PendingSave) -> None:
        with pytest.raises(SaveFailedError, match="No space left"):
            _ = pending.checkpoint
        found.append((pending.state, type(pending.error)))

    begun(checkpointer, 1).add_done_callback(done)
    with pytest.raises(SaveFailedError, match="No space left"):
        checkpointer.wait()
    assert found == [("failed", SaveFailedError)]


def test_a_done_callback_that_raises_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The run goes on, the checkpoint stands, and the callbacks after it are called."""
    calls: list[int] = []
    with Checkpointer(tmp_path) as checkpointer:
        pending = begun(checkpointer, 1)
        pending.add_done_callback(lambda save: 1 // 0)
        pending.add_done_callback(lambda save: calls.append(save.epoch))
    (warning,) = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert warning.message == (
        f"A done-callback failed for <PendingSave of epoch 1: committed, {pending.path}>:"
    )
    assert warning.exc_info is not None
    assert warning.exc_info[0] is ZeroDivisionError
    assert calls == [1]
    assert Checkpointer(tmp_path).list_existing_checkpoint_indices() == [1]
