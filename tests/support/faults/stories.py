"""Stories of training: what a process does to a directory, and what it expects to leave."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray_imuckpt import ImuckptError, Retention, SaveFailedError
from support.disk.operations import Allocate, Operation
from support.disk.recording import Died, Recorder
from support.faults.training import Ledger, Training, write


@dataclass(frozen=True)
class Story:
    """What is done to a directory.

    Attributes:
        name: Of the story.
        before: Makes what was there when it begins, given a ledger, a URL, and options.
        told: What is then done, given the same.
        fails: Makes the disturbance of the operations of one telling.
    """

    name: str
    before: Callable[..., None]
    told: Callable[..., None]
    fails: Callable[[], Callable[[Operation], None] | None] = field(default=lambda: None)


def nothing(ledger: Ledger, url: str, **options: Any) -> None:
    """Begin without a directory."""


def three_epochs(ledger: Ledger, url: str, **options: Any) -> None:
    """Begin with epochs 1 to 3."""
    run = Training(ledger, url, **options)
    for epoch in (1, 2, 3):
        run.save(epoch, epoch)


def first_saves(ledger: Ledger, url: str, **options: Any) -> None:
    """Save two epochs; the second reuses the frozen file of the first."""
    run = Training(ledger, url, **options)
    run.save(1, 1)
    run.save(2, 2)


def saved_again(ledger: Ledger, url: str, **options: Any) -> None:
    """Save an epoch, and the same one twice more, the last time with other frozen parameters."""
    run = Training(ledger, url, **options)
    run.save(4, 4)
    run.save(4, 5)
    run.save(4, 6, frozen=2)


def branched(ledger: Ledger, url: str, **options: Any) -> None:
    """Go back to an epoch, and save over what came after it."""
    run = Training(ledger, url, continue_from=1, **options)
    run.save(2, 12)
    run.save(3, 13)


def begun_anew(ledger: Ledger, url: str, **options: Any) -> None:
    """Begin from scratch beside what is there."""
    Training(ledger, url, continue_from="none", **options).save(1, 21)


def pruned(ledger: Ledger, url: str, **options: Any) -> None:
    """Delete what is old, save, and delete again; 3 is what the run came from."""
    run = Training(ledger, url, **options)
    run.prune(1, 2, keep_last=1)
    run.save(4, 4)
    run.save(5, 5)
    run.prune(4, keep_last=1)


def retained(ledger: Ledger, url: str, **options: Any) -> None:
    """Save with rules given once: what no rule keeps goes, and only after the commit.

    3 is what the run came from. That a deletion fails is no failure of the save, so that what is to
    go may be there to the end.
    """
    after = ledger.now

    def committed(_path: str, metrics: dict[str, Any]) -> None:
        ledger.expect(after.either(after.without(*doomed[metrics["version"]])))

    doomed = {4: (1, 2), 5: (1, 2, 4)}
    rules = Retention(keep_last=1)
    run = Training(ledger, url, retention=rules, on_commit=committed, **options)
    for epoch, gone in doomed.items():
        before = ledger.now
        after = before.saved(epoch, epoch)
        ledger.expect(before.either(after, run.parent))
        write(run.checkpointer, epoch, epoch, run.model, run.optimizer)
        ledger.expect(after.either(after.without(*gone)))
        run.parent = epoch


def failed(ledger: Ledger, url: str, **options: Any) -> None:
    """Fail to save an epoch, on a branch of its own, and then succeed."""
    run = Training(ledger, url, continue_from=2, **options)
    with contextlib.suppress(SaveFailedError):
        run.save(3, 31)
    run.save(3, 32)


def full_disk_once() -> Callable[[Operation], None]:
    """Let one file find no room: the third of the save."""
    allocated = 0

    def disturb(operation: Operation) -> None:
        nonlocal allocated
        if isinstance(operation, Allocate):
            allocated += 1
            if allocated == 3:
                raise OSError(errno.ENOSPC, "No space left on device")

    return disturb


STORIES = (
    Story("first saves", nothing, first_saves),
    Story("saved again", three_epochs, saved_again),
    Story("branched", three_epochs, branched),
    Story("begun anew", three_epochs, begun_anew),
    Story("pruned", three_epochs, pruned),
    Story("retained", three_epochs, retained),
    Story("failed", three_epochs, failed, full_disk_once),
)


def record(
    story: Story,
    top: Path,
    disturb: Callable[[Operation], None] | None = None,
    *,
    again: bool = False,
) -> tuple[Recorder, Ledger]:
    """Tell a story in the directory ``run`` under `top`, which is made, and record it.

    Args:
        story: What is told.
        top: A directory that does not exist.
        disturb: As for `Recorder`; instead of the story's own.
        again: Whether the story may fail, and another process then resumes and saves, undisturbed.
    """
    top.mkdir()
    url = str(top / "run")
    ledger = Ledger()
    story.before(ledger, url)
    recorder = Recorder(top)
    recorder.disturb = disturb or story.fails()
    ledger.begin(recorder.mark)
    with recorder.recording():
        with contextlib.suppress(*((ImuckptError, Died) if again else ())):
            story.told(ledger, url)
        if again:
            recorder.disturb = None
            run = Training(ledger, url)
            run.save((run.parent or 0) + 1, 51)
    return recorder, ledger
