"""Sizes and times as people read them. Touches nothing."""

from __future__ import annotations


def size(count: float) -> str:
    """Return a number of bytes as text, such as ``1.8 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def seconds(duration: float) -> str:
    """Return a duration as text, such as ``0.12 s``."""
    return f"{duration:.3f} s" if duration < 0.1 else f"{duration:.3g} s"


def listed(names: list[str], most: int = 12) -> str:
    """Return names as text, the first `most` of them where there are more."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f", and {more} more" if more > 0 else "")
