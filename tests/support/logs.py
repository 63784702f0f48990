"""What this package logs, for processes in which pytest's `caplog` is not there."""

from __future__ import annotations

import logging
from types import TracebackType


class Messages(logging.Handler):
    """The messages from warnings up; kept inside a ``with``, or from `begin` on."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a message."""
        self.texts.append(record.getMessage())

    def begin(self) -> list[str]:
        """Return the list to which messages are added from now on."""
        logging.getLogger("ray_imuckpt").addHandler(self)
        return self.texts

    def end(self) -> None:
        """Add no more."""
        logging.getLogger("ray_imuckpt").removeHandler(self)

    def __enter__(self) -> list[str]:
        return self.begin()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.end()
