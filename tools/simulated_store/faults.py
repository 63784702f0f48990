"""Which requests to a simulated store fail, and how. Touches nothing."""

from __future__ import annotations

import dataclasses
import enum
import re
import threading
from collections.abc import Iterable
from dataclasses import dataclass

from tools.simulated_store.holdings import RefusalError
from tools.simulated_store.requests import Request


class Action(str, enum.Enum):
    """What becomes of a request."""

    ERROR = "answered 500 InternalError; nothing is done"
    SLOW_DOWN = "answered 503 SlowDown; nothing is done"
    DENIED = "answered 403 AccessDenied; nothing is done"
    EXPIRED = "answered 400 ExpiredToken; nothing is done"
    CONFLICT = "answered 409 ConditionalRequestConflict; nothing is done"
    ERROR_INSIDE = "answered 200 with an InternalError as its body; nothing is done"
    SILENCE = "never answered, until the faults are changed or the store goes down; nothing is done"
    RESET_REQUEST = "the connection breaks when half of the body has come; nothing is done"
    RESET_ANSWER = "done; the connection breaks when half of the answer's body is sent"
    LOST = "done; the connection breaks before the answer"
    LATE = "the connection breaks, and it is done when the late ones are delivered"
    VANISHED = "of a put or a part: answered as if it were done; nothing is done"
    SHORT = "answered with half of the bytes, as if they were all"


REFUSALS = {
    Action.ERROR: RefusalError(500, "InternalError", "We encountered an internal error."),
    Action.SLOW_DOWN: RefusalError(503, "SlowDown", "Please reduce your request rate."),
    Action.DENIED: RefusalError(403, "AccessDenied", "Access Denied"),
    Action.EXPIRED: RefusalError(400, "ExpiredToken", "The provided token has expired."),
    Action.CONFLICT: RefusalError(
        409, "ConditionalRequestConflict", "A conflicting operation is under way."
    ),
}


@dataclass(frozen=True)
class Fault:
    """Some requests, and what becomes of them.

    Attributes:
        action: What becomes of them.
        kind: Their kind (`requests.Request`), ``None`` for all.
        key: A regular expression found in the object's key, or the prefix of a listing.
        access_key: What they are signed with, ``None`` for whatever.
        skip: How many of them pass unharmed first.
        times: How many are then harmed, ``None`` for all.
    """

    action: Action
    kind: str | None = None
    key: str = ""
    access_key: str | None = None
    skip: int = 0
    times: int | None = 1

    def meets(self, request: Request) -> bool:
        """Return whether it is about such a request."""
        return (
            self.kind in (None, request.kind)
            and self.access_key in (None, request.access_key)
            and re.search(self.key, request.key or request.query.get("prefix", "")) is not None
        )

    def to_json(self) -> dict[str, object]:
        """Return it for `from_json`."""
        return dataclasses.asdict(self) | {"action": self.action.name}

    @classmethod
    def from_json(cls, given: dict[str, object]) -> Fault:
        """Return what `to_json` was called of."""
        return cls(**(given | {"action": Action[str(given["action"])]}))  # type: ignore[arg-type]


class Faults:
    """The faults in force; of those that meet a request, the first that is not used up acts."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._faults: list[Fault] = []
        self._met: list[int] = []
        self._changed = threading.Event()

    def replace(self, faults: Iterable[Fault]) -> None:
        """Put other faults in force, and end every silence."""
        with self._lock:
            self._faults = list(faults)
            self._met = [0] * len(self._faults)
        self.end_silence()

    def end_silence(self) -> None:
        """Let all that keep silence go on."""
        with self._lock:
            self._changed.set()
            self._changed = threading.Event()

    def of(self, request: Request) -> tuple[Action | None, threading.Event]:
        """Return what becomes of a request, and what ends a silence that begins now; count it.

        Both at once: whoever sees it counted may end the silence before the request keeps it.
        """
        with self._lock:
            silence = self._changed
            for index, fault in enumerate(self._faults):
                used_up = fault.times is not None and self._met[index] >= fault.skip + fault.times
                if used_up or not fault.meets(request):
                    continue
                self._met[index] += 1
                if self._met[index] > fault.skip:
                    return fault.action, silence
        return None, silence

    def met(self) -> list[int]:
        """Return for each fault how many requests it has harmed."""
        with self._lock:
            return [
                max(0, n - fault.skip) for n, fault in zip(self._met, self._faults, strict=True)
            ]
