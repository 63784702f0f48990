"""The options of a `ray_imuckpt.Checkpointer`, as values that check and pickle themselves.

Each is frozen, takes keywords only, and raises a plain ``ValueError`` or ``TypeError`` when it is
made with what it cannot mean. Touches nothing.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from ray_imuckpt import arguments

RAISE, WARN = "raise", "warn"


@dataclass(frozen=True)
class Best:
    """The choice of the best checkpoints by a metric; of equal ones the later is better.

    Attributes:
        metric: The name of the metric that decides.
        mode: ``"min"`` where less of it is better, ``"max"`` where more is.
        count: How many of the best, where several are meant.

    Raises:
        ValueError, TypeError: A value is none of the choices, or of the wrong type.
    """

    metric: str
    mode: str
    count: int = 1

    def __post_init__(self) -> None:
        """Check the values."""
        arguments.keep_best((self.metric, self.mode, self.count), "Best")


@dataclass(frozen=True, kw_only=True)
class Retention:
    """The rules that say which checkpoints to keep; one stays when any of them keeps it.

    Args:
        keep_last: Keep the newest so many.
        keep_every: Keep those whose epoch is a multiple of this.
        keep_best: ``(metric, mode)`` or ``(metric, mode, count)``: keep the best by that metric, by
            ``"min"`` or ``"max"``. A checkpoint without a number for it is passed over; where none
            has one, the other rules alone count, and nothing is deleted if there are none.

    Raises:
        ValueError: No rule is given, or a value keeps nothing.
        TypeError: A value has the wrong type.
    """

    keep_last: int | None = None
    keep_every: int | None = None
    keep_best: tuple[str, str] | tuple[str, str, int] | None = None

    def __post_init__(self) -> None:
        """Check the rules."""
        for name in ("keep_last", "keep_every"):
            value = getattr(self, name)
            if value is not None and arguments.epoch(value, name) == 0:
                raise ValueError(f"{name}=0 keeps nothing; use 1 or more, or leave it out.")
        if self.keep_best is not None:
            arguments.keep_best(self.keep_best)
        if self.keep_last is None and self.keep_every is None and self.keep_best is None:
            raise ValueError("No rule is given: keep_last=, keep_every= or keep_best= is wanted.")

    @property
    def best(self) -> Best | None:
        """Return what `keep_best` says, its count filled in."""
        return None if self.keep_best is None else Best(*arguments.keep_best(self.keep_best))


@dataclass(frozen=True, kw_only=True)
class Saving:
    """The choice of when and how checkpoints are made; `ray_imuckpt.Checkpointer` explains each.

    Raises:
        ValueError, TypeError: A value is none of the choices, or of the wrong type.
    """

    save_every: int | None = None
    save_interval: float | timedelta | None = None
    blocking: bool = False
    snapshot: str = "eager"
    on_save_error: str = RAISE
    max_failed_saves: int = 3

    def __post_init__(self) -> None:
        """Check the values."""
        if self.save_every is not None:
            arguments.save_every(self.save_every)
        if self.save_interval is not None:
            arguments.duration(self.save_interval, "save_interval")
        arguments.flag(self.blocking, "blocking")
        arguments.snapshot(self.snapshot)
        if self.on_save_error not in (RAISE, WARN):
            raise ValueError(
                f"on_save_error={self.on_save_error!r} is not known. Choose {RAISE!r} or {WARN!r}."
            )
        if arguments.epoch(self.max_failed_saves, "max_failed_saves") == 0:
            raise ValueError(
                f"max_failed_saves=0 tolerates nothing; that is on_save_error={RAISE!r}."
            )

    @property
    def tolerant(self) -> bool:
        """Return whether training goes on after a save that failed."""
        return self.on_save_error == WARN

    @property
    def rule(self) -> str:
        """Return in words when a checkpoint is due."""
        every = None if self._every is None else f"save_every={self._every}"
        interval = None if self.save_interval is None else f"save_interval={self.save_interval}"
        return ", ".join(filter(None, (every, interval)))

    @property
    def _every(self) -> int | None:
        if self.save_every is None:
            return 1 if self.save_interval is None else None
        return operator.index(self.save_every)

    def is_due(self, epoch: int) -> bool:
        """Return whether a checkpoint is due at the end of this epoch, whatever the time."""
        return self._every is not None and epoch % self._every == 0

    def is_due_after(self, seconds: float) -> bool:
        """Return whether a checkpoint is due so long after the last one, whatever the epoch."""
        if self.save_interval is None:
            return False
        return seconds >= arguments.duration(self.save_interval, "").total_seconds()


@dataclass(frozen=True, kw_only=True)
class Retries:
    """The choice of how often, and for how long, what fails in passing is tried again.

    Args:
        attempts: How many tries of a request there are in all; 1 tries nothing again.
        deadline: Seconds or a ``timedelta`` after its first failure, from when on there is no other
            try. One that is under way is waited for.

    Raises:
        ValueError, TypeError: A value is not positive, or of the wrong type.
    """

    attempts: int = 50
    deadline: float | timedelta = 120.0

    def __post_init__(self) -> None:
        """Check the values."""
        if arguments.epoch(self.attempts, "attempts") == 0:
            raise ValueError("attempts=0 tries nothing; use 1 or more.")
        arguments.duration(self.deadline, "deadline")

    @property
    def seconds(self) -> float:
        """Return the deadline in seconds."""
        return arguments.duration(self.deadline, "deadline").total_seconds()


@dataclass(frozen=True)
class Opening:
    """The choice of how the storages that a user speaks of are opened; its repr holds no secret.

    Attributes:
        options: For the fsspec file systems of URLs.
        retries: How often and how long an operation is tried; ``None``: as usual.
    """

    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    retries: Retries | None = None
