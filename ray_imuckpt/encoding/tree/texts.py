"""Arrays of texts: which of them are stored as their texts, not as their bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

_PADDING = 64  # bytes for each character: arrays of texts that have more are stored as bytes


def fits_in_text(items: Sequence[str | bytes], dtype: np.dtype[Any]) -> bool:
    """Return whether an array of these texts is not much larger than they are."""
    return dtype.itemsize * len(items) <= _PADDING * (len(items) + sum(map(len, items)))
