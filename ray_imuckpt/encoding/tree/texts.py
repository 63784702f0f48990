"""Texts: which of them JSON brings back, which arrays of them are stored as texts, not as bytes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

_PADDING = 64  # bytes for each character: arrays of texts that have more are stored as bytes
_PAIRED = re.compile("[\ud800-\udbff][\udc00-\udfff]")  # which JSON reads as one letter


def is_json_text(value: str) -> bool:
    """Return whether JSON brings a text back as it was."""
    return not _PAIRED.search(value)


def fits_in_text(items: Sequence[str | bytes], dtype: np.dtype[Any]) -> bool:
    """Return whether an array of these texts is not much larger than they are."""
    return dtype.itemsize * len(items) <= _PADDING * (len(items) + sum(map(len, items)))
