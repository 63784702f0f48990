"""Values as JSON for programs. Touches nothing."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any


def dumps(value: Any) -> str:
    """Return a dataclass, or whatever holds some, as JSON: ASCII, indented, without NaN.

    What JSON has no word for, such as a tensor among the metrics or a number that is not finite, is
    the text that Python shows for it.
    """
    return json.dumps(_plain(value), indent=2, allow_nan=False)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return {field.name: _plain(getattr(value, field.name)) for field in fields}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if _is_json(value) else _shown(value)


def _is_json(value: Any) -> bool:
    if type(value) is float:
        return math.isfinite(value)
    if type(value) is int:
        return abs(value) <= 2**53  # what every reader of JSON has exactly
    return value is None or type(value) in {bool, str}


def _shown(value: Any) -> str:
    try:
        return str(value)
    except ValueError:  # an integer of more digits than Python shows
        return hex(value)
