"""The number of tries of one operation, and the time for them. Values, touches nothing."""

from __future__ import annotations

from dataclasses import dataclass

from ray_imuckpt.options import Retries

_USUAL = Retries()


@dataclass(frozen=True)
class Patience:
    """A number of tries and a time for them.

    Attributes:
        attempts: Tries in all.
        seconds: After the first failure, from when on there is no other try.
    """

    attempts: int = _USUAL.attempts
    seconds: float = _USUAL.seconds

    @classmethod
    def of(cls, retries: Retries | None) -> Patience:
        """Return what a user chose, or the usual one."""
        return cls() if retries is None else cls(retries.attempts, retries.seconds)

    @property
    def brief(self) -> Patience:
        """Return what is left of it where somebody waits: at the start of a run."""
        return Patience(min(self.attempts, 4), min(self.seconds, 10.0))
