"""What must hold in a directory after any fault: the promises, asked of the public calls."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

from fsspec.core import url_to_fs

from ray_imuckpt import Checkpointer, ImuckptError
from ray_imuckpt.repository import leftovers
from ray_imuckpt.repository.paths import LINEAGE, MANIFEST
from support.faults.training import Expectation, objects, version_in, write

AGAIN = 777  # the version of the save that every state is followed by


class BrokenPromise(AssertionError):  # noqa: N818 - it is no error of a program
    """A promise does not hold.

    Args:
        kind: ``"lost"``, ``"torn"``, ``"wrong last"`` or ``"left over"``.
        text: What was found.
    """

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind = kind


@dataclass
class Tally:
    """How many states were checked, and what was broken in them."""

    checked: Counter[str] = field(default_factory=Counter)
    broken: Counter[str] = field(default_factory=Counter)
    reports: list[str] = field(default_factory=list)

    def check(self, kind: str, where: str, url: str, expected: Expectation, **options: Any) -> None:
        """Check one state, and remember what is broken in it."""
        self.checked[kind] += 1
        try:
            check(url, expected, **options)
        except BrokenPromise as error:
            self.broken[error.kind] += 1
            self.reports.append(f"{kind}, {where}: {error}")
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this state's failure
            self.broken["raised"] += 1
            self.reports.append(f"{kind}, {where}: {type(error).__name__}: {error}")

    def merge(self, other: Tally) -> None:
        """Count what another has counted."""
        self.checked += other.checked
        self.broken += other.broken
        self.reports += other.reports

    def __str__(self) -> str:
        """One line for the end of a test run."""
        kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(self.checked.items()))
        broken = ", ".join(f"{self.broken[kind]} {kind}" for kind in ("lost", "torn", "wrong last"))
        rest = "".join(f", {self.broken[k]} {k}" for k in ("left over", "raised"))
        return f"crash states: {self.checked.total()} checked ({kinds}): {broken}{rest}"


def check(url: str, expected: Expectation, **options: Any) -> None:
    """Check that nothing is lost or torn, and that a run goes on from here.

    Raises:
        BrokenPromise: What does not hold.
    """
    found = _check_listed(url, expected, **options)
    first = _check_resumed(url, expected, found, **options)
    _check_after_another_save(url, {**found, first: AGAIN}, first, **options)
    _check_nothing_left(url, **options)


def _check_listed(url: str, expected: Expectation, **options: Any) -> dict[int, int]:
    found = _versions(Checkpointer(url, **options))
    for epoch in sorted({*found, *expected.epochs}):
        allowed = expected.epochs.get(epoch, frozenset([None]))
        if found.get(epoch) not in allowed:
            told = f"epoch {epoch} holds {found.get(epoch)}, not one of {set(allowed)}"
            raise BrokenPromise("lost", told)
    return found


def _check_resumed(url: str, expected: Expectation, found: dict[int, int], **options: Any) -> int:
    """Resume and save once; return the epoch that was saved."""
    checkpointer = Checkpointer(url, blocking=True, **options)
    model, optimizer = objects()
    started = checkpointer.start(model, optimizer)
    last = started.start_epoch - 1 or None
    if last not in expected.lasts:
        raise BrokenPromise("wrong last", f"start() took {last}, not one of {set(expected.lasts)}")
    if last is not None:
        trained = {number for p in model.trained.parameters() for number in p.flatten().tolist()}
        if trained != {found[last]} or started.log[0] != found[last]:
            raise BrokenPromise("torn", f"start() put {trained} and {started.log} into the objects")
    write(checkpointer, started.start_epoch, AGAIN, model, optimizer)
    return started.start_epoch


def _check_after_another_save(
    url: str, expected: dict[int, int], last: int, **options: Any
) -> None:
    checkpointer = Checkpointer(url, **options)
    found = _versions(checkpointer)
    if found != expected:
        raise BrokenPromise("lost", f"a further save leaves {found}, not {expected}")
    if checkpointer.index_of_last_checkpoint() != last:
        told = f"after a further save of {last} it is {checkpointer.index_of_last_checkpoint()}"
        raise BrokenPromise("wrong last", told)
    checkpointer.prune(keep_last=1)
    left = _versions(checkpointer)
    if not left.items() <= found.items() or last not in left:
        raise BrokenPromise("lost", f"prune left {left} of {found}")


def _check_nothing_left(url: str, **options: Any) -> None:
    """Prune a day later; then every file is one that a manifest names."""
    with mock.patch.object(leftovers, "OLD", -60.0):  # what is a minute younger is old enough
        Checkpointer(url, **options).prune(keep_last=1)
    checkpointer = Checkpointer(url, **options)
    named = {LINEAGE}
    for epoch in checkpointer.list_existing_checkpoint_indices():
        files = checkpointer.read(epoch).manifest.files
        names = [MANIFEST, *(entry.name for entry in files)]
        named |= {f"checkpoint={epoch}/{name}" for name in names}
    filesystem, path = url_to_fs(url, **options.get("storage_options", {}))
    there = {name.removeprefix(f"{path}/") for name in filesystem.find(path)}
    if there != named:
        raise BrokenPromise("left over", f"too many or too few: {there ^ named}")


def _versions(checkpointer: Checkpointer) -> dict[int, int]:
    found = {}
    for epoch in checkpointer.list_existing_checkpoint_indices():
        try:
            checkpointer.verify(epoch)
            version = version_in(checkpointer, epoch)
        except ImuckptError as error:
            raise BrokenPromise("torn", f"epoch {epoch}: {error}") from error
        if version is None:
            raise BrokenPromise("torn", f"epoch {epoch} is a mixture of two saves")
        found[epoch] = version
    return found
