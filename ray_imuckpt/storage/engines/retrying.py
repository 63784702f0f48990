"""Doing again what failed for a reason that passes, within a time. Touches the clock, the log.

Which reasons pass is told by the engine. Between two tries lies a random time, out of a span that
doubles: processes that were refused together do not come back together.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Protocol, TypeVar

from ray_imuckpt.storage.engines.patience import Patience
from ray_imuckpt.storage.engines.protocol import Fault
from ray_imuckpt.storage.failures import LASTING, ExhaustedError
from ray_imuckpt.threads.parallel import in_vain

logger = logging.getLogger("ray_imuckpt")

T = TypeVar("T")

FIRST_SPAN, LONGEST_SPAN = 0.2, 10.0  # seconds; a wait is half of it on average


def _rest(seconds: float) -> None:
    """Wait, but not for a call that is going to raise an error: Ctrl-C on another thread, say."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0 and not in_vain():
        time.sleep(min(left, 0.25))


class Judge(Protocol):
    """Tells which errors pass, and can have credentials renewed: an engine."""

    def fault(self, error: BaseException) -> Fault:
        """Return whether it may help to do again what raised `error`."""

    def renew(self) -> None:
        """Look up the credentials anew."""


def patiently(
    patience: Patience, judge: Judge, what: str, call: Callable[[], T], *, whole: bool = False
) -> T:
    """Return what `call` returns, which may be called more than once.

    Args:
        patience: How often and how long.
        judge: Tells which errors pass.
        what: What is done to what, for the log.
        call: Does no harm when it is done twice.
        whole: Whether it sends a file from its beginning, also one of which a part was lost.

    Raises:
        ExhaustedError: It failed for a reason that passes, each time.
        Exception: It failed for another reason.
    """
    import tenacity

    began = time.monotonic()
    failed: list[float] = []  # when, of each try
    renewed: list[BaseException] = []

    def again(error: BaseException) -> bool:
        failed.append(time.monotonic())
        fault = judge.fault(error)
        if fault is Fault.EXPIRED and not renewed:
            renewed.append(error)  # once: credentials that were given do not change
            judge.renew()
            return True
        passes = fault is Fault.PASSING or (whole and fault is Fault.LOST)
        return passes and not isinstance(error, ExhaustedError) and not in_vain()

    def stop(state: tenacity.RetryCallState) -> bool:
        next_try = failed[-1] + state.upcoming_sleep
        return len(failed) >= patience.attempts or next_try >= failed[0] + patience.seconds

    def tell(state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        wait, extra = state.upcoming_sleep, {LASTING: time.monotonic() - began}
        logger.info("%s failed, and is tried again in %.1f s: %s", what, wait, error, extra=extra)

    retrying = tenacity.Retrying(
        stop=stop,
        wait=tenacity.wait_random_exponential(multiplier=FIRST_SPAN, max=LONGEST_SPAN),
        retry=tenacity.retry_if_exception(again),
        before_sleep=tell,
        sleep=_rest,
        reraise=True,
    )
    try:
        return retrying(call)
    except (FileNotFoundError, PermissionError, ExhaustedError):
        raise  # whose class tells more
    except OSError as error:
        if len(failed) > 1 and judge.fault(error) is Fault.PASSING:
            took = failed[-1] - failed[0]
            raise ExhaustedError(f"{error} ({len(failed)} tries in {took:.1f} s)") from error
        raise
