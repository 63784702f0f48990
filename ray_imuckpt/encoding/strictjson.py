"""JSON as the norm has it, where Python's own reader takes more. Touches nothing.

``json.loads`` takes NaN and Infinity, makes infinity of ``1e999``, and of a key that is there twice
it keeps the last: two readers of the same bytes could see two things.
"""

from __future__ import annotations

import json
import math
from typing import Any


def loads(text: str | bytes) -> Any:
    """Return the value of a JSON text that says one thing only.

    Raises:
        ValueError: It is not JSON, nested too deeply, holds a number that is not finite, or an
            object with the same key twice.
    """
    try:
        return json.loads(
            text, parse_constant=_refuse, parse_float=_finite, object_pairs_hook=_distinct
        )
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _refuse(literal: str) -> Any:
    raise ValueError(f"{literal} is not JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"the number {digits[:20]} is not finite")
    return value


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("an object has the same key twice")
    return fields
