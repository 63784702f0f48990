"""Pickle, tried before Ray or a spawned process does it, so that the error says what to do.

Touches pickle, and cloudpickle where Ray or its user has imported it.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Mapping
from contextvars import ContextVar

from ray_imuckpt.errors import UnsupportedStateError

_CLOUDPICKLES = ("ray.cloudpickle", "cloudpickle")
_TRYING = ContextVar("_TRYING", default=False)


def check(values: Mapping[str, object]) -> None:
    """Raise unless each value can be pickled.

    Args:
        values: By what an error is to call them.

    Raises:
        UnsupportedStateError: One cannot be; no value is in the text.
    """
    if _TRYING.get():  # one of them holds what holds them all
        return
    token = _TRYING.set(True)
    try:
        for name, value in values.items():
            error = _failure(value)
            if error is not None:
                raise UnsupportedStateError(
                    f"{name} cannot be sent to another process with the Checkpointer: it holds "
                    f"what cannot be pickled ({type(error).__name__}: {error}).",
                    hint="Make what cannot be pickled (a lock, a connection, an open file) where "
                    "it is used: inside of the function, which is best one of a module; or make "
                    "the Checkpointer itself in the training function.",
                ) from error
    finally:
        _TRYING.reset(token)


def _failure(value: object) -> Exception | None:
    """Return why a value cannot be pickled, ``None`` where it can be."""
    found = [sys.modules[name] for name in _CLOUDPICKLES if name in sys.modules]
    failure: Exception | None = None
    for library in [pickle, *found]:
        try:
            library.dumps(value)
        except Exception as error:  # noqa: BLE001 - of the value's own class
            failure = error
        else:
            return None
    return failure
