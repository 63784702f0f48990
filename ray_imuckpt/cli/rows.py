"""The rows of `ls`: values, which touch nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

COMMITTED = "committed"
DAMAGED = "damaged manifest"
MISSING = "missing file"
CUT = "cut file"
NEWER_FORMAT = "newer format"
UNREADABLE = "unreadable"

LEFTOVER = "leftover"
UNFINISHED = "unfinished"

CURRENT = "current"
ABANDONED = "abandoned"


ELSEWHERE = "elsewhere"
EMPTY = "no checkpoint"


@dataclass(frozen=True)
class CheckpointRow:
    """One checkpoint.

    Attributes:
        epoch: Its epoch.
        state: ``committed``, which does not say that its bytes are sound; ``damaged manifest``;
            ``missing file`` or ``cut file``, of a size that is not the one committed; ``newer
            format``; or ``unreadable``, if the storage does not give it out.
        problem: What is wrong, in words; empty if it is ``committed``.
        branch: ``current`` or ``abandoned``; ``None`` where that cannot be told.
        created: UTC time, ISO 8601; ``None``, like all below, where the manifest cannot be read.
        age: Seconds since then, by this machine's clock.
        step: How many steps the training had made, ``None`` where that was not given, too.
        size: Bytes of all files.
        world_size: How many ranks the gang had.
        run_id: The run that made it.
        metrics: The metrics given with it.
    """

    epoch: int
    state: str = COMMITTED
    problem: str = ""
    branch: str | None = None
    created: str | None = None
    age: float | None = None
    step: int | None = None
    size: int | None = None
    world_size: int | None = None
    run_id: str | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LeftoverRow:
    """The files of one save that no manifest names.

    Attributes:
        epoch: The epoch that it was to be of; ``None`` of a temporary file in the run directory.
        save_id: Its id; ``None`` of temporary files.
        state: ``leftover``, of a save that did not end; or ``unfinished``, if something of it is
            less than a day old: it failed, or is in flight.
        files: How many files.
        uploads: How many uploads that were begun and not ended.
        size: Bytes of the files.
        age: Seconds since something of it was written; ``None`` where the storage does not tell.
    """

    epoch: int | None
    save_id: str | None
    state: str
    files: int
    uploads: int
    size: int
    age: float | None


@dataclass(frozen=True)
class BestRow:
    """The best checkpoint of a run: its epoch, and its number for the metric that was asked for."""

    epoch: int
    value: float


@dataclass(frozen=True)
class Listing:
    """All checkpoints of a run directory.

    Attributes:
        url: The directory.
        checkpoints: A row each, by epoch.
        leftovers: A row for each save that no manifest names.
        best: The best one, where a metric was asked for and one has a number for that.
        in_use: The process of this machine that trains in it: ``run_id``, ``host``, ``pid`` and
            ``since``, as far as it has told; ``None`` where there is no telling.
        problem: Why branches cannot be told, in words; empty if they can.
    """

    url: str
    checkpoints: tuple[CheckpointRow, ...]
    leftovers: tuple[LeftoverRow, ...]
    best: BestRow | None = None
    in_use: Mapping[str, Any] | None = None
    problem: str = ""


@dataclass(frozen=True)
class RunRow:
    """One run.

    Attributes:
        name: Its directory, relative to the one that was listed.
        url: Its directory.
        state: That of its last checkpoint, see `CheckpointRow`; ``elsewhere`` where it has
            but pointers to checkpoints; ``no checkpoint`` where it has but leftovers; or
            ``unreadable``.
        problem: What is wrong, in words, or where its checkpoints are.
        checkpoints: How many it has, those of abandoned branches among them.
        last: The epoch of the last one that is of no abandoned branch; ``None``, like the next
            three, where that cannot be told.
        created: UTC time of that one, ISO 8601.
        age: Seconds since then, by this machine's clock.
        metrics: The metrics given with it.
        best: The best one, where a metric was asked for and it has a number for that.
        size: Bytes of all its files; what several checkpoints share on a disk counts once.
        leftovers: How many bytes of these are of saves that did not end, or are in flight.
        uploads: How many uploads these have begun and not ended; of their bytes nothing is known.
        in_use: See `Listing`.
    """

    name: str
    url: str
    state: str = EMPTY
    problem: str = ""
    checkpoints: int = 0
    last: int | None = None
    created: str | None = None
    age: float | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    best: BestRow | None = None
    size: int = 0
    leftovers: int = 0
    uploads: int = 0
    in_use: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class BestRunRow:
    """The best checkpoint of several runs: the name of its run, its epoch, and its number."""

    run: str
    epoch: int
    value: float


@dataclass(frozen=True)
class RunsBelow:
    """The runs below a directory.

    Attributes:
        url: The directory.
        runs: A row each, by name or as was asked for.
        best: The best checkpoint of all, where a metric was asked for and one has a number for it.
    """

    url: str
    runs: tuple[RunRow, ...]
    best: BestRunRow | None = None
