"""Calls from several threads and signal handlers: in turn, or an error of ours; never for ever."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from conftest import in_a_child
from ray_imuckpt import Checkpointer, ImuckptError
from ray_imuckpt.staging import copies
from ray_imuckpt.storage.local import LocalStorage
from ray_imuckpt.threads.turns import Turns
from ray_imuckpt.threads.worker import Worker
from support.waiting import PATIENCE


def filled(value: float) -> nn.Module:
    model = nn.Linear(8, 8)
    for parameter in model.parameters():
        nn.init.constant_(parameter, value)
    return model


@pytest.fixture
def on_alarm() -> Iterator[Callable[[Callable[[], Any]], None]]:
    """Makes a function the handler of the signal that `signal.raise_signal` is to raise."""
    before = signal.getsignal(signal.SIGALRM)

    def on(handle: Callable[[], Any]) -> None:
        signal.signal(signal.SIGALRM, lambda *_: handle())

    yield on
    signal.signal(signal.SIGALRM, before)


def on_threads(*works: Callable[[], object]) -> None:
    """Run them side by side; raise what one of them raised."""
    errors: list[BaseException] = []

    def run(work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=run, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive(), "it waits for ever"
    if errors:
        raise errors[0]


def test_a_worker_whose_joining_is_interrupted_still_runs(on_alarm: Any) -> None:
    """Python before 3.13 takes a thread for ended then; a save would be called durable."""

    def handle() -> None:
        raise KeyboardInterrupt

    on_alarm(handle)
    go = threading.Event()
    worker = Worker(go.wait, "test")
    worker.join()  # it has not begun
    assert not worker.running()
    worker.start()

    def join() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        worker.join()

    with pytest.raises(KeyboardInterrupt):  # wherever this thread is by then
        join()
    assert worker.running()
    go.set()
    worker.join()
    assert not worker.running()


@pytest.mark.parametrize("blocking", [False, True])
def test_two_threads_that_save_with_one_checkpointer_take_turns(
    tmp_path: Path, *, blocking: bool
) -> None:
    """Each waits for its own save, and every epoch holds what its thread has saved."""
    checkpointer = Checkpointer(tmp_path, blocking=blocking)
    checkpointer.start(filled(0.0))

    def save(epochs: range) -> None:
        for epoch in epochs:
            pending = checkpointer.checkpoint(epoch, model=filled(epoch), log=[epoch])
            assert pending is not None
            pending.wait()
            checkpointer.verify(epoch)

    on_threads(lambda: save(range(1, 41, 2)), lambda: save(range(2, 41, 2)))
    assert checkpointer.list_existing_checkpoint_indices() == list(range(1, 41))
    for epoch in range(1, 41):
        loaded = checkpointer.read(epoch)
        assert loaded.model["weight"].unique().tolist() == [epoch]
        assert loaded.log == [epoch]


def test_threads_that_save_load_list_and_wait_do_not_wait_for_each_other_for_ever(
    tmp_path: Path,
) -> None:
    """On two Checkpointers of one process, each used by all threads."""
    both = [Checkpointer(tmp_path / name, snapshot=name) for name in ("eager", "overlap")]
    model = filled(1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    for checkpointer in both:
        checkpointer.checkpoint(1, model=model, optimizer=optimizer)

    def save() -> None:
        for epoch in range(2, 20):
            for checkpointer in both:
                checkpointer.checkpoint(epoch, model=model, optimizer=optimizer)
            optimizer.step()

    def look() -> None:
        for _ in range(15):
            for checkpointer in both:
                checkpointer.wait()
                checkpointer.load(filled(0.0), 1)
                assert checkpointer.list_existing_checkpoint_indices()[0] == 1

    on_threads(save, look, look)
    for checkpointer in both:
        checkpointer.wait()
        assert checkpointer.list_existing_checkpoint_indices() == list(range(1, 20))


def test_two_threads_may_wait_for_one_save(tmp_path: Path) -> None:
    """Both return once it is durable."""
    pending = Checkpointer(tmp_path).checkpoint(1, model=filled(1.0))
    assert pending is not None
    on_threads(*[pending.wait] * 4)
    assert pending.done()


@pytest.mark.parametrize("call", ["checkpoint", "wait", "pending", "start", "preempted"])
def test_a_signal_handler_that_calls_within_a_call_is_told_what_to_do_instead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_alarm: Any, call: str
) -> None:
    """What it interrupted goes on as if nothing had been."""
    checkpointer = Checkpointer(tmp_path)
    pending = checkpointer.checkpoint(1, model=filled(1.0))
    assert pending is not None
    told: list[Exception] = []

    def handle() -> None:
        try:
            {
                "checkpoint": lambda: checkpointer.checkpoint(3, model=filled(3.0)),
                "wait": checkpointer.wait,
                "pending": pending.wait,
                "start": lambda: checkpointer.start(filled(3.0)),
                "preempted": checkpointer.preempted,
            }[call]()
        except ImuckptError as error:
            told.append(error)

    on_alarm(handle)
    real = copies.copy_on_host

    def copy(pairs: copies.Pairs) -> None:
        signal.raise_signal(signal.SIGALRM)
        real(pairs)

    with monkeypatch.context() as patch:
        patch.setattr(copies, "copy_on_host", copy)
        checkpointer.checkpoint(2, model=filled(2.0))
    checkpointer.wait()
    assert len(told) == (0 if call == "pending" else 1)  # that save had been settled before
    assert all("preempted()" in str(error) for error in told)
    assert checkpointer.list_existing_checkpoint_indices() == [1, 2]
    assert checkpointer.read(2).model["weight"].unique().tolist() == [2.0]


def test_a_signal_handler_may_look_at_the_directory_whatever_it_interrupts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_alarm: Any
) -> None:
    """Also just before the thread of a save is there, which it therefore cannot wait for."""
    checkpointer = Checkpointer(tmp_path)
    checkpointer.checkpoint(1, model=filled(1.0))
    checkpointer.wait()
    seen: list[list[int]] = []
    on_alarm(lambda: seen.append(checkpointer.list_existing_checkpoint_indices()))
    real = Worker.start

    def start(worker: Worker) -> None:
        signal.raise_signal(signal.SIGALRM)
        real(worker)
        signal.raise_signal(signal.SIGALRM)

    with monkeypatch.context() as patch:
        patch.setattr(Worker, "start", start)
        checkpointer.checkpoint(2, model=filled(2.0))
    checkpointer.wait()
    assert seen == [[1], [1, 2]]


def test_a_second_thread_of_a_rank_is_told_that_a_gang_cannot_take_turns() -> None:
    """The other ranks would not know which of the two calls comes first."""
    turns = Turns()
    turns.gang = True
    inside, leave = threading.Event(), threading.Event()

    def first() -> None:
        inside.set()
        assert leave.wait(PATIENCE)

    def second() -> None:
        assert inside.wait(PATIENCE)
        try:
            with pytest.raises(ImuckptError, match="Two threads of one rank"):
                turns.take(lambda: None)
        finally:
            leave.set()

    on_threads(lambda: turns.take(first), second)
    assert turns.take(lambda: 1) == 1


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_process_that_is_forked_in_the_middle_of_anothers_turn_has_turns_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that would end the turn is not there."""
    checkpointer = Checkpointer(tmp_path, blocking=True)
    writes, forked = threading.Event(), threading.Event()
    real = LocalStorage.write

    def write(storage: LocalStorage, name: str, *rest: Any) -> None:
        writes.set()
        assert forked.wait(PATIENCE)
        real(storage, name, *rest)

    monkeypatch.setattr(LocalStorage, "write", write)

    def fork() -> None:
        assert writes.wait(PATIENCE)
        try:
            assert in_a_child(lambda: checkpointer.preempted() is False)
        finally:
            forked.set()

    on_threads(partial(checkpointer.checkpoint, 1, model=filled(1.0)), fork)
    assert checkpointer.list_existing_checkpoint_indices() == [1]


def test_a_blocking_save_that_is_interrupted_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not waited for, its interrupt is raised once, and the next save is as any other."""
    checkpointer = Checkpointer(tmp_path, blocking=True)

    def write(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(LocalStorage, "write", write)
        with pytest.raises(KeyboardInterrupt):
            checkpointer.checkpoint(1, model=filled(1.0))
    checkpointer.wait()
    checkpointer.checkpoint(2, model=filled(2.0))
    assert checkpointer.list_existing_checkpoint_indices() == [2]


def test_a_storage_that_exits_fails_the_save_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever class the error has: it is told as the failure of that save."""

    def write(*_: Any) -> None:
        raise SystemExit(3)

    checkpointer = Checkpointer(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(LocalStorage, "write", write)
        pending = checkpointer.checkpoint(1, model=filled(1.0))
        assert pending is not None
        with pytest.raises(ImuckptError, match="broken off: SystemExit: 3"):
            pending.wait()
    checkpointer.checkpoint(2, model=filled(2.0))
    checkpointer.wait()
    assert checkpointer.list_existing_checkpoint_indices() == [2]
