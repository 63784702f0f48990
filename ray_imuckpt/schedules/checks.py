"""Numbers as the user gave them, checked; plain ints and floats come out. Touches nothing.

Each function takes the value and the name it has in the message. The wrong type is a ``TypeError``,
a value out of range a ``ValueError``.
"""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Sequence
from typing import Any, Protocol, SupportsIndex, runtime_checkable


@runtime_checkable
class _Array(Protocol):
    """A tensor, or an array of NumPy or of another library."""

    shape: Sequence[int]

    def item(self) -> Any:
        """Return the one element, as a number of Python's."""


def number(value: Any, name: str) -> float:
    """Return any real number, nan and infinities too; also one in a tensor or array."""
    shape: tuple[int, ...] = ()
    if isinstance(value, _Array):
        shape = tuple(value.shape)
        value = value.item() if math.prod(shape) == 1 else value
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        what = type(value).__name__ + (f" of shape {shape}" if shape else "")
        raise TypeError(f"{name} is a {what}; a single real number is wanted.")
    return float(value)


def finite(value: Any, name: str) -> float:
    """Return a number that is neither nan nor infinite."""
    plain = number(value, name)
    if not math.isfinite(plain):
        raise ValueError(f"{name} is {plain}; a finite number is wanted.")
    return plain


def not_negative(value: Any, name: str) -> float:
    """Return a finite number, 0 or more."""
    plain = finite(value, name)
    if plain < 0:
        raise ValueError(f"{name} is {plain}; 0 or more is wanted.")
    return plain


def positive(value: Any, name: str) -> float:
    """Return a finite number above 0."""
    plain = not_negative(value, name)
    if plain == 0:
        raise ValueError(f"{name} is 0; more is wanted.")
    return plain


def count(value: Any, name: str, at_least: int = 1) -> int:
    """Return an int (of NumPy's too) of at least so much; not a bool, which would be a slip."""
    if isinstance(value, bool) or not isinstance(value, SupportsIndex):
        raise TypeError(f"{name} is a {type(value).__name__}; an int is wanted.")
    plain = operator.index(value)
    if plain < at_least:
        raise ValueError(f"{name} is {plain}; {at_least} or more is wanted.")
    return plain


def counts(value: Any, name: str) -> int | tuple[int, ...]:
    """Return one such int, or a tuple of those of a list or tuple that is not empty."""
    if not isinstance(value, (list, tuple)):
        return count(value, name)
    if not value:
        raise ValueError(f"{name} is empty.")
    return tuple(count(item, f"{name}[{position}]") for position, item in enumerate(value))
