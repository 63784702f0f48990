"""The training log of a checkpoint as rows of columns, for `log` and `plot`. Touches nothing.

A user may keep anything as the log: a list of numbers, of dicts with whatever keys, nested ones
among them, of lists; or a dict of columns.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch

VALUE = "value"  # the column of what has no name
AXES = ("epoch", "global_step", "step", "iteration")

Row = dict[str, Any]


def rows(log: Any) -> list[Row]:
    """Return a log as rows: each a name to a value, nested names joined by dots; ragged ones too.

    Args:
        log: As it was passed to `checkpoint`.
    """
    if isinstance(log, Mapping) and any(map(_is_list, log.values())):  # a column under each name
        length = max(len(column) for column in log.values() if _is_list(column))
        return [
            {str(name): column[n] for name, column in log.items() if _is_list(column, n + 1)}
            for n in range(length)
        ]
    entries = list(log) if _is_list(log) else [] if log is None else [log]
    return [_row(entry) for entry in entries]


def columns(table: Sequence[Row]) -> list[str]:
    """Return the names of all columns, in the order in which they are met."""
    return list({name: None for row in table for name in row})


def chosen(words: Sequence[str], names: Collection[str]) -> list[str]:
    """Return the names that words such as ``loss,accuracy`` choose, each once.

    A name may hold commas, or have spaces around it: where there is such a one it is meant.

    Args:
        words: As they were given.
        names: Those that there are; others are returned too, without spaces around them.
    """
    named: list[str] = []
    for word in words:
        parts = [word] if word in names else word.split(",")
        named += [part if part in names else part.strip() for part in parts if part.strip()]
    return list(dict.fromkeys(named))


def axis(table: Sequence[Row]) -> str | None:
    """Return the column that counts what the rows are of; ``None``: their own number does."""
    for name in AXES:
        values = [number(row.get(name)) for row in table]
        if values and all(
            b is not None and (a is None or a < b)
            for a, b in zip([None, *values], values, strict=False)
        ):
            return name
    return None


def number(value: Any) -> float | None:
    """Return a value as a finite number, if it is one: a tensor or an array of one element too."""
    if isinstance(value, torch.Tensor):
        value = value.item() if value.numel() == 1 else None
    elif isinstance(value, (np.generic, np.ndarray)):
        value = value.item() if value.size == 1 else None
    if type(value) not in {int, float}:
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def _row(entry: Any) -> Row:
    row: Row = {}
    _flatten(row, "", entry)
    return row


def _flatten(row: Row, path: str, value: Any) -> None:
    if isinstance(value, Mapping):
        for name, item in value.items():
            _flatten(row, f"{path}.{name}" if path else str(name), item)
    elif _is_list(value) and not path:
        row.update({str(n): item for n, item in enumerate(value)})
    else:
        row[path or VALUE] = value


def _is_list(value: Any, length: int = 0) -> bool:
    return isinstance(value, (list, tuple)) and len(value) >= length
