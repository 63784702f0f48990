"""A plain model of a run directory in which two runs save. Touches nothing but itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ray_imuckpt import Checkpointer
from support.faults.training import Net


@dataclass
class Run:
    """A run, as the model knows it.

    Attributes:
        checkpointer: The real thing.
        at: The version that it came from, or saved last.
        known: The tip when it started or saved last: a newer one is another run's work.
        records: How often the record of branches had been replaced then.
        damages: How often it had been damaged when the run looked at it last.
        parent: The epoch that it came from.
        dies: Whether it dies before its next commit; not empty if so.
        committed: Whether it has saved.
    """

    checkpointer: Checkpointer
    model: Net
    optimizer: Any
    at: int | None
    known: int | None
    records: int
    damages: int
    parent: int | None
    dies: list[bool]
    committed: bool = False


@dataclass
class Branches:
    """What has been saved, what of it is there, and what the current branch is.

    Attributes:
        saved: Version: its epoch and its parent.
        there: Epoch: its version.
        tip: The version that was committed last.
        begun: The parents of branches that were recorded and whose runs then died.
    """

    saved: dict[int, tuple[int, int | None]] = field(default_factory=dict)
    there: dict[int, int] = field(default_factory=dict)
    tip: int | None = None
    begun: set[int | None] = field(default_factory=set)

    def history(self, version: int | None) -> set[int]:
        """The version and all that it came from."""
        found = set()
        while version is not None:
            found.add(version)
            version = self.saved[version][1]
        return found

    def live(self, tip: int | None) -> dict[int, int]:
        """The checkpoints of a branch that are there."""
        history = self.history(tip)
        return {e: v for e, v in sorted(self.there.items()) if v in history}

    def lasts(self) -> set[int | None]:
        """What may be "the last"."""
        return {max(self.live(tip), default=None) for tip in {self.tip, *self.begun}}

    def highest(self) -> int | None:
        """The version of the highest epoch that is there."""
        return self.there.get(max(self.there, default=0))
