"""Sizes, times and ranks as people read them. Touches nothing."""

from __future__ import annotations

import re
from collections.abc import Sequence


def size(count: float) -> str:
    """Return a number of bytes as text, such as ``1.8 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([KMGT]?B)", re.IGNORECASE)


def parsed(text: str) -> int:
    """Return the bytes that a text such as ``5GB`` stands for, one at least.

    Raises:
        ValueError: It is none.
    """
    match = _SIZE.fullmatch(text.strip())
    count = int(float(match[1]) * _UNITS[match[2].upper()]) if match else 0
    if not count:
        raise ValueError(f"{text!r} is no size: give one such as 5GB or 500MB")
    return count


def seconds(duration: float) -> str:
    """Return a duration as text, such as ``0.12 s``."""
    return f"{duration:.3f} s" if duration < 0.1 else f"{duration:.3g} s"


_SPANS = {"s": 1, "min": 60, "h": 3600, "d": 24 * 3600}
_SPAN = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?(s|min|h|d)")


def age(seconds: float) -> str:
    """Return seconds in the largest unit of which they are one: ``12 s``, ``5 min``, ``3 d``."""
    unit = max((u for u in _SPANS if _SPANS[u] <= seconds), key=lambda u: _SPANS[u], default="s")
    return f"{max(seconds, 0) // _SPANS[unit]:.0f} {unit}"


def parsed_age(text: str) -> float:
    """Return the seconds that a text such as ``30min`` or ``2d`` stands for.

    Raises:
        ValueError: It is none.
    """
    match = _SPAN.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no age: give one such as 30min, 12h or 2d")
    return float(match[1]) * _SPANS[match[2]]


def listed(names: list[str], most: int = 12) -> str:
    """Return names as text, the first `most` of them where there are more."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f", and {more} more" if more > 0 else "")


def ranks(numbers: Sequence[int], most: int | None = None) -> str:
    """Return ranks as text, such as ``ranks 1, 2``; the first `most` of them, if given."""
    shown = numbers if most is None else numbers[:most]
    more = f" and {len(numbers) - len(shown)} more" if len(shown) < len(numbers) else ""
    return f"rank{'s' * (len(numbers) > 1)} {', '.join(map(str, shown))}{more}"


def amount(count: int, noun: str) -> str:
    """Return a number of things as text, such as ``1 rank`` or ``2 ranks``."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def natural(name: str) -> list[tuple[int, str]]:
    """Return a key by which ``run9`` is sorted before ``run10``."""
    return [(int(p), "") if p.isdecimal() else (-1, p) for p in re.split(r"([0-9]+)", name)]
