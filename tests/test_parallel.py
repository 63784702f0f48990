"""Threads and the garbage collector, whatever instruction an interrupt arrives at."""

from __future__ import annotations

import gc
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest

from conftest import in_a_child
from ray_imuckpt.storage.engines.patience import Patience
from ray_imuckpt.storage.engines.protocol import Fault
from ray_imuckpt.storage.engines.retrying import patiently
from ray_imuckpt.threads import parallel, worker
from ray_imuckpt.threads.parallel import each, uncollected
from support.waiting import PATIENCE


@pytest.fixture(autouse=True)
def _thresholds() -> Iterator[None]:
    """A test that fails does not leave its thresholds to the others."""
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)


def interrupted_at(step: int, call: Callable[[], Any]) -> KeyboardInterrupt | None:
    """Run `call` with Ctrl-C before instruction `step` of parallel.py and threads.py.

    Returns:
        The interrupt, as it came out; ``None`` when `call` has fewer instructions.
    """
    left = [step]

    def trace(frame: FrameType, event: str, _: object) -> Any:
        if frame.f_code.co_filename not in (parallel.__file__, worker.__file__):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            left[0] -= 1
            if left[0] < 0:
                sys.settrace(None)
                raise KeyboardInterrupt(frame.f_code.co_name, frame.f_lineno, frame.f_lasti)
        return trace

    before = sys.gettrace()
    try:
        sys.settrace(trace)
        call()
    except KeyboardInterrupt as interrupt:
        return interrupt
    finally:
        sys.settrace(before)
    return None


@pytest.mark.parametrize("fails", [False, True])
def test_wherever_an_interrupt_arrives_the_collector_runs_as_before(*, fails: bool) -> None:
    """Also while the traceback, and so every frame that was interrupted, is kept."""
    seen: list[int] = []

    @uncollected
    def outer() -> None:
        seen.append(gc.get_threshold()[0])
        inner()
        seen.append(gc.get_threshold()[0])

    @uncollected
    def inner() -> None:
        seen.append(gc.get_threshold()[0])
        if fails:
            raise OSError

    def call() -> None:
        try:
            outer()
        except OSError:
            assert fails

    before = gc.get_threshold()
    call()
    assert min(seen) > before[0], "it has rested"
    assert gc.get_threshold() == before
    interrupted_at(sys.maxsize, call)  # Python 3.12 traces instructions from the second call on
    steps = 0
    while (kept := interrupted_at(steps, call)) is not None:
        assert gc.get_threshold() == before, steps
        assert gc.isenabled()
        assert kept.__traceback__ is not None
        steps += 1
    assert steps > 40


def test_a_collector_that_the_user_has_set_stays_as_it_is() -> None:
    """Switched off before or within the work, without a threshold, or with a high one."""
    within: list[tuple[int, int, int]] = []

    @uncollected
    def look() -> None:
        within.append(gc.get_threshold())

    for thresholds in ((0, 10, 10), (5_000_000, 3, 3)):
        gc.set_threshold(*thresholds)
        look()
        assert within.pop() == thresholds == gc.get_threshold()
    gc.set_threshold(600, 7, 8)
    look()
    assert within.pop()[1:] == (7, 8)
    assert gc.get_threshold() == (600, 7, 8)
    switch_off = uncollected(gc.disable)
    try:
        switch_off()
        assert not gc.isenabled()
        look()
        assert not gc.isenabled()
    finally:
        gc.enable()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_that_is_forked_while_the_collector_rests_collects() -> None:
    """A DataLoader's worker may be forked while a save is laid out on another thread."""
    before = gc.get_threshold()
    resting, forked = threading.Event(), threading.Event()

    @uncollected
    def rest() -> None:
        resting.set()
        assert forked.wait(PATIENCE)

    thread = threading.Thread(target=rest)
    thread.start()
    assert resting.wait(PATIENCE)
    assert gc.get_threshold() != before
    collects = in_a_child(lambda: gc.isenabled() and gc.get_threshold() == before)
    forked.set()
    thread.join()
    assert collects
    assert gc.get_threshold() == before


def helpers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "imuckpt-io"]


def test_wherever_an_interrupt_arrives_no_helper_works_on() -> None:
    """Who called may close the file that the helpers write to."""
    working: set[int] = set()

    def work(index: int) -> None:
        working.add(index)
        if threading.current_thread() is not threading.main_thread():
            time.sleep(0.001)
        working.discard(index)

    steps = 0
    while (where := interrupted_at(steps, lambda: parallel.each(work, 6, threads=3))) is not None:
        assert not working, where
        for helper in helpers():  # its start was interrupted: it finds nothing to do
            helper.join(PATIENCE)
        assert not working, steps
        steps += 1
    assert steps > 100


def test_an_interrupted_loop_of_work_has_ended_when_it_raises() -> None:
    """A signal that arrives while the helpers work is raised once they have ended."""
    helping = threading.Event()
    done: list[int] = []

    def work(index: int) -> None:
        if threading.current_thread() is threading.main_thread():
            assert helping.wait(PATIENCE)
            signal.raise_signal(signal.SIGINT)
            return
        helping.set()
        time.sleep(0.2)
        done.append(index)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            parallel.each(work, 50, threads=3)
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(done) < 49, "not all that was left"
    assert not helpers()


def test_fewer_threads_than_wanted_do_all_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no thread is to be had, the caller does it alone."""

    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    done: list[int] = []
    parallel.each(done.append, 5, threads=4)
    assert done == [0, 1, 2, 3, 4]


class Hopeful:
    """A judge for whom every error passes."""

    def fault(self, error: BaseException) -> Fault:
        return Fault.PASSING

    def renew(self) -> None:
        pass


def test_nothing_is_tried_again_once_another_call_has_failed() -> None:
    """Ctrl-C on one thread is not followed by minutes of patience on the others."""
    tried = threading.Event()

    def fail() -> None:
        tried.set()
        raise OSError("the store is down")

    caller = threading.current_thread()

    def work(_: int) -> None:
        if threading.current_thread() is not caller:
            patiently(Patience(attempts=10**9, seconds=1e9), Hopeful(), "Reading", fail)
        tried.wait()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        each(work, 2, 2)
