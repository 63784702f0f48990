"""The error for a value that cannot be stored."""

from __future__ import annotations

from typing import Any

import numpy as np

from ray_imuckpt.errors import UnsupportedStateError


def refusal(value: Any, path: str) -> UnsupportedStateError:
    """Return the error for a value of a type that cannot be stored, with what to do instead."""
    kind = type(value)
    hint = "Store plain values, or give it state_dict and load_state_dict and pass it by keyword."
    if isinstance(value, dict):
        hint = "Pass dict(...) instead: what a subclass adds could not be brought back."
    elif isinstance(value, tuple):
        hint = "Pass tuple(...) or a dict: a named tuple's class could not be brought back."
    elif isinstance(value, (list, str, int, float, set)):
        hint = f"Pass a plain {kind.__mro__[-2].__name__}: the subclass could not be brought back."
    elif isinstance(value, np.ndarray):
        hint = "Arrays of objects and of records cannot be stored; use numbers or strings."
    elif callable(value):
        hint = "Functions cannot be stored; build them anew in the program."
    return UnsupportedStateError(
        f"{path} is a {kind.__module__}.{kind.__qualname__}: it cannot be stored.", hint=hint
    )
