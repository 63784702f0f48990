"""Values ↔ JSON, exactly and without pickle. Touches torch and numpy; no I/O.

Plain JSON stands for ``None``, ``bool``, ``int``, finite ``float``, ``str``, ``list`` and ``dict``
with string keys. Everything else is an object with the key ``"$"``, which names its type; the table
is in `docs/format-v1.md`. Tensors and numeric arrays are put aside and referred to by name.

Decoding runs no code and imports nothing by name: an unknown tag is an error.
"""

from __future__ import annotations

import json

from ray_imuckpt.errors import CorruptCheckpointError
from ray_imuckpt.tree.decoding import decode
from ray_imuckpt.tree.encoding import JSON, encode

__all__ = ["JSON", "decode", "dumps", "encode", "loads"]


def dumps(data: JSON) -> bytes:
    """Compact ASCII JSON; strict (no NaN literals)."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False).encode("ascii")


def loads(data: bytes) -> JSON:
    """What `dumps` wrote.

    Raises:
        CorruptCheckpointError: It is not JSON.
    """
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CorruptCheckpointError(f"A tree is not JSON: {error}.") from error
