"""What steers a `ray_imuckpt.Checkpointer`, as values that check and pickle themselves.

Each is frozen, takes keywords only, and raises a plain ``ValueError`` or ``TypeError`` when it is
made with what it cannot mean. Touches nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from ray_imuckpt import arguments


@dataclass(frozen=True)
class Best:
    """Which checkpoints are the best.

    Attributes:
        metric: The name of the metric that decides.
        mode: ``"min"`` where less of it is better, ``"max"`` where more is.
        count: How many of the best.
    """

    metric: str
    mode: str
    count: int = 1


@dataclass(frozen=True, kw_only=True)
class Retention:
    """Which checkpoints to keep; one stays when any of the rules keeps it.

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
    """When and how a checkpoint is made; `ray_imuckpt.Checkpointer` says what each means.

    Raises:
        ValueError, TypeError: A value is none of the choices, or of the wrong type.
    """

    save_every: int = 1
    blocking: bool = False
    snapshot: str = "eager"

    def __post_init__(self) -> None:
        """Check the values, and make plain ones of them."""
        object.__setattr__(self, "save_every", arguments.save_every(self.save_every))
        arguments.flag(self.blocking, "blocking")
        arguments.snapshot(self.snapshot)

    def is_due(self, epoch: int) -> bool:
        """Return whether a checkpoint is due at the end of this epoch."""
        return epoch % self.save_every == 0


@dataclass(frozen=True, kw_only=True)
class Retries:
    """How often, and for how long, what failed for a passing reason is tried again.

    Args:
        attempts: How many tries there are in all; 1 tries nothing again.
        deadline: Seconds or a ``timedelta`` after the first try, from when on there is no other.

    Raises:
        ValueError, TypeError: A value is not positive, or of the wrong type.
    """

    attempts: int = 5
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
