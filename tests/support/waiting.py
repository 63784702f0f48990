"""Waits for the thing itself that a test depends on, however slow the machine is."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

PATIENCE = 120.0  # seconds after which what should come soon is taken for what never comes


def until(done: Callable[[], object]) -> None:
    """Wait until something is so.

    Raises:
        TimeoutError: It is not, and `PATIENCE` is over.
    """
    end = time.monotonic() + PATIENCE
    while not done():
        if time.monotonic() > end:
            raise TimeoutError(f"It is not so after {PATIENCE:.0f} s.")
        time.sleep(0.01)


def until_committed(directory: str | os.PathLike[str], epoch: int | None = None) -> None:
    """Wait until there is a checkpoint in a run directory, or that of an epoch.

    Raises:
        TimeoutError: There is none, and `PATIENCE` is over.
    """
    name = "checkpoint=*" if epoch is None else f"checkpoint={epoch}"
    until(lambda: any(Path(directory).glob(f"{name}/manifest.json")))
