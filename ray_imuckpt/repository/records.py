"""Records: JSON files with a checksum of themselves inside. Values and bytes, no I/O.

The manifest and the record of branches are such. `unseal` applies the rules of a reader that hold
for both: one JSON object, not larger than any that is written, of numbers that are finite and keys
that are there once; a format that this release knows; the checksum of the canonical JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ray_imuckpt.encoding import chunks, strictjson
from ray_imuckpt.errors import CorruptCheckpointError, UnsupportedFormatError
from ray_imuckpt.storage.names import MAX_RECORD

FORMAT = 1
_MAX_OBJECTS = 200_000  # and lists: one a file, an ancestor, an abandoned epoch
_MAX_VALUES = 2_000_000
_SMALL = 1024 * 1024  # whatever it holds, it takes few times as much memory


def seal(record: Mapping[str, Any]) -> bytes:
    """Return a JSON record with its own checksum inside, one field a line for human readers."""
    body = {**record, "checksum": _record_checksum(record)}
    lines = (
        f"{json.dumps(key)}: {json.dumps(value, sort_keys=True, allow_nan=False)}"
        for key, value in body.items()
    )
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode("ascii")


def unseal(data: bytes, url: str, hint: str) -> dict[str, Any]:
    """Return the record that `seal` wrote.

    Args:
        data: The file's bytes.
        url: Where they came from, for the error.
        hint: What to do when they are damaged.

    Raises:
        UnsupportedFormatError: It was written by a newer release.
        CorruptCheckpointError: It is not what was written.
    """
    try:
        record = loads(data)
        if not isinstance(record, dict):
            raise TypeError("not a JSON object")
        version = record["format"]
        if type(version) is not int or version < 1:
            raise TypeError("format is not a positive integer")
        stated = record.pop("checksum", None)
        computed = _record_checksum(record) if version <= FORMAT else None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptCheckpointError(
            f"The record is empty, cut or not ours ({error}).",
            url=url,
            hint=hint,
        ) from error
    if version > FORMAT:
        raise UnsupportedFormatError(
            f"It has format {version}; this release reads formats up to {FORMAT}.",
            url=url,
            hint="Upgrade ray_imuckpt on this machine.",
        )
    if stated != computed:
        raise CorruptCheckpointError(
            "The record was altered: its checksum does not match.",
            url=url,
            hint=hint,
        )
    return record


def loads(data: bytes) -> Any:
    """Return the value of a record, if it is not larger than one of ours can be."""
    if len(data) > _SMALL and (
        len(data) > MAX_RECORD
        or data.count(b"{") + data.count(b"[") > _MAX_OBJECTS
        or data.count(b",") > _MAX_VALUES
    ):
        raise ValueError(f"it has {len(data)} bytes, and more values than any record")
    return strictjson.loads(data)


def _record_checksum(record: Mapping[str, Any]) -> str:
    canonical = json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return chunks.checksum([canonical.encode("ascii")])
