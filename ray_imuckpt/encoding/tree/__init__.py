"""Values ↔ JSON, exactly and without pickle. Touches torch and numpy; no I/O.

Plain JSON stands for ``None``, ``bool``, ``int``, finite ``float``, ``str``, ``list`` and ``dict``
with string keys. Everything else is an object with the key ``"$"``, which names its type; the table
is in `docs/format-v1.md`. Tensors and numeric arrays are put aside and referred to by name.

Decoding runs no code and imports nothing by name: an unknown tag is an error.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable

from ray_imuckpt.encoding.tree.decoding import decode, decode_dict
from ray_imuckpt.encoding.tree.encoding import JSON, encode
from ray_imuckpt.encoding.tree.references import check_key, of_pairs, renamed
from ray_imuckpt.encoding.tree.still import Still, encode_later
from ray_imuckpt.errors import CorruptCheckpointError

__all__ = [
    "JSON",
    "Still",
    "check_key",
    "decode",
    "decode_dict",
    "dumps",
    "encode",
    "encode_later",
    "loads",
    "of_pairs",
    "renamed",
]


def dumps(data: JSON) -> bytes:
    """Return compact ASCII JSON; strict (no NaN literals).

    Args:
        data: JSON types, and `Still` values, which are encoded slice by slice: another thread may
            run in between.
    """
    aside: list[Still] = []
    mark = uuid.uuid4().hex

    def put_aside(value: object) -> str:
        if not isinstance(value, Still):
            raise TypeError(f"{value!r} is not of JSON")
        aside.append(value)
        return mark

    first, *others = _dumps(data, put_aside).split(f'"{mark}"'.encode())
    pieces = [first]
    for still, text in zip(aside, others, strict=True):
        slices = [_dumps(data) for data in still.slices()]
        if type(still.value) is list:
            slices = [b"[", b",".join(text[1:-1] for text in slices), b"]"]
        pieces += [*slices, text]
    return b"".join(pieces)


def _dumps(data: JSON, default: Callable[[object], str] | None = None) -> bytes:
    text = json.dumps(data, separators=(",", ":"), allow_nan=False, default=default)
    return text.encode("ascii")


def loads(data: str | bytes) -> JSON:
    """Return what `dumps` wrote.

    Of a key that an object has twice the last counts, as Python's reader has it: to look for such
    keys would more than double the time of a long log.

    Raises:
        CorruptCheckpointError: It is not JSON.
    """
    try:
        return json.loads(data, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise CorruptCheckpointError(f"A tree is not JSON: {error}.") from error


def _refuse(literal: str) -> JSON:
    raise ValueError(f"{literal} is not JSON")
