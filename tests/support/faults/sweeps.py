"""Sweeps: one story again and again, disturbed at each of its operations. Touches os to lay out."""

from __future__ import annotations

import contextlib
import errno
import random
import shutil
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

from ray_imuckpt import ImuckptError
from support.disk import crash_states
from support.disk.operations import Operation
from support.disk.recording import Died
from support.faults.invariants import Tally
from support.faults.stories import Story, record
from support.faults.training import Ledger
from support.object_store import Bucket, Disturbance

LONGEST = 1000  # operations of a story; a sweep that comes there is wrong


def crashes(
    story: Story, top: Path, *, most: int, share: float, unsaid: tuple[type, ...] = ()
) -> Tally:
    """Check what a crash at any operation leaves.

    Args:
        story: What is told.
        top: An empty directory.
        most: Subsets of unsynced names that are tried after each operation.
        share: Of the states with a power loss, which share is checked; all others are.
        unsaid: Operations that are done and left out of the record: a fault planted.
    """
    recorder, ledger = record(story, top / "told")
    recorder.log = [step for step in recorder.log if not isinstance(step, unsaid)]
    without_power = crash_states.power_lost(
        recorder, random.Random(0), most=most, share=share, share_at_marks=share
    )
    return _checked(ledger, chain(crash_states.killed(recorder), without_power), top)


class Fault:
    """Disturbs one operation of the local file system, and maybe all that follow.

    Args:
        count: Which operation, counted from 1 among those of `kinds`.
        kinds: All kinds if none is named.
    """

    def __init__(self, count: int, kinds: tuple[type, ...]) -> None:
        self._left, self._kinds = count, kinds
        self.met = False

    def fail(self, operation: Operation) -> None:
        """Let the operation fail, as a disk does."""
        if not self.met and self._is(operation):
            raise OSError(errno.EIO, "Input/output error")

    def kill(self, operation: Operation) -> None:
        """Let nothing happen any more: no clean-up of the process's own either."""
        if self.met or self._is(operation):
            raise Died

    def _is(self, operation: Operation) -> bool:
        self._left -= not self._kinds or isinstance(operation, self._kinds)
        self.met = self._left == 0
        return self.met


def second_faults(
    story: Story, top: Path, how: str, *kinds: type, share: float, share_at_marks: float
) -> Tally:
    """Disturb each operation, let another process go on, and check what a power loss then leaves.

    Args:
        story: What is told.
        top: An empty directory.
        how: ``"fail"`` or ``"kill"``, as `Fault` does it.
        kinds: The operations to disturb; all kinds if none is named.
        share: Which share of the states is checked.
        share_at_marks: The same for the moments at which a call begins or has ended.
    """
    found, draw = Tally(), random.Random(0)
    for count in range(1, LONGEST):
        fault = Fault(count, kinds)
        told = top / f"told-{count}"
        disturb = fault.fail if how == "fail" else fault.kill
        recorder, ledger = record(story, told, disturb, again=True)
        if not fault.met:
            return found
        states = crash_states.power_lost(
            recorder, draw, most=8, share=share, share_at_marks=share_at_marks
        )
        found.merge(_checked(ledger, states, top))
        shutil.rmtree(told)
    raise AssertionError("the story never ended")


def requests(story: Story, how: str, stride: int = 1) -> Tally:
    """Disturb one request after the other to an object store, and check what is then there.

    Args:
        story: What is told.
        how: As for `Disturbance`.
        stride: From one request to the next that is disturbed; 1: each is.
    """
    found = Tally()
    url = "objects://bucket/run"
    before, entered = Bucket(), Ledger()
    story.before(entered, url, storage_options={"bucket": before})
    for count in range(1, LONGEST, stride):
        bucket, ledger = Bucket(dict(before.objects)), Ledger()
        ledger.expect(entered.now)
        bucket.disturbance = Disturbance(count, how)
        with contextlib.suppress(ImuckptError, Died):
            story.told(ledger, url, storage_options={"bucket": bucket})
        if bucket.disturbance.met is None:
            return found
        where = f"{how} at request {count}, {bucket.disturbance.met}"
        bucket.disturbance = Disturbance()
        options = {"storage_options": {"bucket": bucket}}
        found.check(f"object store, {how}", where, url, ledger.now, **options)
    raise AssertionError("the story never ended")


def _checked(ledger: Ledger, states: Iterable[crash_states.CrashState], top: Path) -> Tally:
    """Check states of a recorded story; no two that are checked are the same."""
    tally = Tally()
    known: set[bytes] = set()
    for state in states:
        key = state.key()
        if key in known:
            continue
        known.add(key)
        # A directory of its own: this process remembers which files it has found sound.
        where = top / f"state-{len(known)}"
        crash_states.lay_out(state.tree, str(where))
        expected = ledger.expectations[state.expectation]
        tally.check(state.kind, state.where, str(where / "run"), expected)
        shutil.rmtree(where)
    return tally
