"""Doing again what failed for a reason that passes, within a time. Touches the clock, the log.

Which reasons pass is told by the engine. Between two tries lies a random time, out of a span that
doubles: processes that were refused together do not come back together.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from ray_imuckpt.options import Retries
from ray_imuckpt.storage.engines.protocol import Fault

logger = logging.getLogger("ray_imuckpt")

T = TypeVar("T")

_USUAL = Retries()
_FIRST_SPAN, _LONGEST_SPAN = 0.2, 10.0  # seconds; a wait is half of it on average


class Judge(Protocol):
    """Tells which errors pass, and can have credentials renewed: an engine."""

    def fault(self, error: BaseException) -> Fault:
        """Return whether it may help to do again what raised `error`."""

    def renew(self) -> None:
        """Look up the credentials anew."""


@dataclass(frozen=True)
class Patience:
    """A number of tries and a time for them.

    Attributes:
        attempts: Tries in all.
        seconds: After the first try, from when on there is no other.
    """

    attempts: int = _USUAL.attempts
    seconds: float = _USUAL.seconds

    @classmethod
    def of(cls, retries: Retries) -> Patience:
        """Return what a user chose."""
        return cls(retries.attempts, retries.seconds)

    @property
    def brief(self) -> Patience:
        """Return what is left of it where somebody waits: at the start of a run."""
        return Patience(min(self.attempts, 4), min(self.seconds, 10.0))


def patiently(patience: Patience, judge: Judge, what: str, call: Callable[[], T]) -> T:
    """Return what `call` returns, which may be called more than once.

    Args:
        patience: How often and how long.
        judge: Tells which errors pass.
        what: What is done to what, for the log.
        call: Does no harm when it is done twice.

    Raises:
        Exception: The last error of `call`.
    """
    import tenacity

    renewed: list[BaseException] = []

    def again(error: BaseException) -> bool:
        fault = judge.fault(error)
        if fault is Fault.EXPIRED and not renewed:
            renewed.append(error)  # once: credentials that were given do not change
            judge.renew()
            return True
        return fault is Fault.PASSING

    def tell(state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        wait = state.next_action.sleep if state.next_action else 0.0
        logger.info("%s failed, and is tried again in %.1f s: %s", what, wait, error)

    retrying = tenacity.Retrying(
        stop=tenacity.stop_after_attempt(patience.attempts)
        | tenacity.stop_before_delay(patience.seconds),
        wait=tenacity.wait_random_exponential(multiplier=_FIRST_SPAN, max=_LONGEST_SPAN),
        retry=tenacity.retry_if_exception(again),
        before_sleep=tell,
        reraise=True,
    )
    return retrying(call)
