"""Encoded trees as JSON: other names for their tensors, dicts of encoded values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ray_imuckpt.encoding.tree.encoding import JSON, TAG
from ray_imuckpt.encoding.tree.texts import is_json_text
from ray_imuckpt.errors import UnsupportedStateError


def renamed(data: JSON, names: Mapping[str, str]) -> JSON:
    """Return a tree whose tensors have other names.

    Args:
        data: What `encode` returned.
        names: The new name of each that gets one.
    """
    if type(data) is list:
        return [renamed(item, names) for item in data]
    if type(data) is not dict:
        return data
    if data.get(TAG) == "tensor":
        return {**data, "v": names.get(data["v"], data["v"])}
    return {key: renamed(item, names) for key, item in data.items()}


def of_pairs(pairs: Iterable[tuple[JSON, JSON]]) -> JSON:
    """Return the tree of a dict, of its keys and its encoded values."""
    return {TAG: "dict", "v": [list(pair) for pair in pairs]}


def check_key(key: str, path: str) -> None:
    """Raise `UnsupportedStateError` if `key` cannot stand in a JSON object beside encoded values.

    Args:
        key: The key.
        path: Where the object is, for the error.
    """
    if key == TAG or not is_json_text(key):
        raise UnsupportedStateError(
            f"{path} has the key {key!r}, which would not come back.",
            hint="Pass it under another keyword.",
        )
