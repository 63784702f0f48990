"""`on_commit`: a user's function that learns of each commit, and cannot harm one."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from torch import nn

from ray_imuckpt import Checkpointer, Retention, SaveFailedError, UnsupportedStateError, load
from ray_imuckpt.storage.local import LocalStorage

MODEL = nn.Linear(2, 2)


def test_it_is_called_with_path_and_metrics_of_what_is_committed(tmp_path: Path) -> None:
    """Whoever is told of a checkpoint can load it at once, on the thread that wrote it."""
    calls: list[tuple[str, dict[str, Any]]] = []
    threads: set[str] = set()

    def note(path: str, metrics: dict[str, Any]) -> None:
        load(nn.Linear(2, 2), path)
        calls.append((path, metrics))
        threads.add(threading.current_thread().name)

    checkpointer = Checkpointer(tmp_path, save_every=2, on_commit=note)
    for epoch in range(1, 6):
        checkpointer.checkpoint(epoch, model=MODEL, metrics={"loss": epoch / 2}, last=epoch == 5)
    checkpointer.wait()
    expected = [(epoch, {"loss": epoch / 2}) for epoch in (2, 4, 5)]
    assert calls == [(str(tmp_path / f"checkpoint={e}"), metrics) for e, metrics in expected]
    assert threads == {"imuckpt-save"}


def test_with_blocking_it_is_called_before_checkpoint_returns(tmp_path: Path) -> None:
    """On the caller's own thread, also without metrics."""
    calls: list[tuple[str, Any, int]] = []
    checkpointer = Checkpointer(
        tmp_path,
        blocking=True,
        on_commit=lambda path, metrics: calls.append((path, metrics, threading.get_ident())),
    )
    checkpointer.checkpoint(1, model=MODEL)
    assert calls == [(str(tmp_path / "checkpoint=1"), {}, threading.get_ident())]


def test_it_is_not_called_for_a_save_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is logged as a checkpoint that is none."""
    calls: list[str] = []
    checkpointer = Checkpointer(
        tmp_path, blocking=True, on_commit=lambda path, _metrics: calls.append(path)
    )

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(LocalStorage, "write", full)
    with pytest.raises(SaveFailedError):
        checkpointer.checkpoint(1, model=MODEL)
    assert calls == []


def test_what_it_raises_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The checkpoint is committed, old ones go, and training goes on."""

    def broken(_path: str, _metrics: dict[str, Any]) -> None:
        raise KeyError("no such project")

    checkpointer = Checkpointer(tmp_path, on_commit=broken, retention=Retention(keep_last=1))
    with caplog.at_level(logging.WARNING, "ray_imuckpt"):
        for epoch in (1, 2):
            checkpointer.checkpoint(epoch, model=MODEL)
        checkpointer.wait()
    assert caplog.text.count("on_commit failed for") == 2
    assert "no such project" in caplog.text
    assert checkpointer.list_existing_checkpoint_indices() == [2]


@pytest.mark.parametrize("blocking", [False, True])
@pytest.mark.parametrize("call", ["wait", "checkpoint", "start", "preempted"])
def test_what_would_wait_for_the_save_itself_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, call: str, *, blocking: bool
) -> None:
    """On the thread that writes, and on the caller's: a warning, not a wait without end."""
    begun = threading.Event()
    if blocking:
        begun.set()
    calls: dict[str, Callable[[Checkpointer], object]] = {
        "wait": Checkpointer.wait,
        "checkpoint": lambda of: of.checkpoint(9, model=MODEL),
        "start": lambda of: of.start(MODEL),
        "preempted": Checkpointer.preempted,
    }

    def commits(*_: object) -> None:
        assert begun.wait(10)
        calls[call](checkpointer)

    checkpointer = Checkpointer(tmp_path, blocking=blocking, on_commit=commits)
    checkpointer.checkpoint(1, model=MODEL)
    begun.set()
    checkpointer.wait()
    assert "for the training loop" in caplog.text
    assert checkpointer.list_existing_checkpoint_indices() == [1]


def test_it_travels_with_the_checkpointer(tmp_path: Path) -> None:
    """As Ray sends it to the workers."""
    told = tmp_path / "told"
    checkpointer = Checkpointer(
        tmp_path / "run",
        blocking=True,
        retention=Retention(keep_last=1),
        on_commit=lambda path, _metrics: told.write_text(path),
    )
    travelled = cloudpickle.loads(cloudpickle.dumps(checkpointer))
    assert (travelled.saving, travelled.retention) == (checkpointer.saving, checkpointer.retention)
    for epoch in (1, 2):
        travelled.checkpoint(epoch, model=MODEL)
    assert told.read_text() == str(tmp_path / "run" / "checkpoint=2")
    assert travelled.list_existing_checkpoint_indices() == [2]


def test_what_is_no_function_is_refused_at_construction() -> None:
    """It is told on the driver, before any worker is started."""
    with pytest.raises(TypeError, match="a function is wanted"):
        Checkpointer("somewhere", on_commit="print")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["on_commit", "storage_options['session']"])
def test_what_cannot_be_sent_to_a_worker_is_named(tmp_path: Path, name: str) -> None:
    """By the argument, and with what to do; Ray's own error names the Checkpointer alone."""
    lock = threading.Lock()
    given: dict[str, Any] = {"storage_options": {"session": lock, "key": "Kx7secretQ"}}
    if name == "on_commit":
        given = {"on_commit": lambda *_: lock.locked()}
    checkpointer = Checkpointer(tmp_path, **given)
    with pytest.raises(UnsupportedStateError, match="lock") as caught:
        cloudpickle.dumps(checkpointer)
    assert str(caught.value).startswith(f"{name} cannot be sent")
    assert caught.value.hint
    assert "Kx7secretQ" not in str(caught.value)


def test_a_function_may_hold_the_checkpointer_itself(tmp_path: Path) -> None:
    """A method of what holds both, say."""
    held: list[Checkpointer] = []
    held.append(Checkpointer(tmp_path, on_commit=lambda *_: held[0].read()))
    assert cloudpickle.loads(cloudpickle.dumps(held[0])).dir == str(tmp_path)
